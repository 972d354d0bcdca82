"""md4all's network and loss on images from this project: day-to-adverse distillation.

    python train.py --config=configs/distill_md4all.py --workdir=runs/distill_md4all \
        --config.data.train.source.root=PAIRS --config.data.evaluation.root=NUSCENES

PAIRS is a workdir of generate_adverse.py with labels from md4all's baseline
(`baseline_nuscenes.ckpt`). Loss, optimiser and schedule are those of md4all-DD ("Robust Monocular
Depth Estimation under Challenging Conditions", Gasperini et al., ICCV 2023, arXiv:2308.09711;
`train_md4allDDa_nuscenes.yaml` and the defaults of its `config.py`): AbsRel against the teacher's
depth, Adam at 2e-4, halved every 5 of 20 epochs, 16 images of 320x576, a third of them clear. Its
epoch shows every frame twice; the number of clear-day frames, 15,129, is from Tosi et al.
Unlike md4all, the student starts from the teacher and not from an ImageNet encoder, day and night
images are normalised in the same way, and there is neither hue shift nor Gaussian noise.

Labels are the teacher's depth of the clean images, which generate_adverse.py stored with the pairs;
with `--config.teacher.checkpoint=baseline_nuscenes.ckpt` they are computed during training instead,
on exactly the crop that the student sees.

Expected hours and numbers: not measured here.
"""

from ml_collections import ConfigDict, config_dict

STEPS_PER_EPOCH = 2 * 15_129 // 16


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 16
    config.num_steps = 20 * STEPS_PER_EPOCH
    config.ema_decay = 0.0
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    config.model = ConfigDict()
    config.model.name = "monodepth2"
    config.model.variant = "res18"

    config.init = {
        "network": "baseline_nuscenes.ckpt",  # what the student starts from: a run or a file
        "encoder": config_dict.placeholder(str),  # or encoder weights only
    }
    config.init.options = {}  # what the file name does not say, such as {"version": 2}
    # With a checkpoint here, labels are computed during training; otherwise they are in the data.
    config.teacher = {
        "checkpoint": config_dict.placeholder(str),
        "num_inference_steps": config_dict.placeholder(int),
    }
    config.teacher.options = {}

    config.objective = {"name": "md4all", "scales": 4}

    config.optimizer = {
        "name": "adam",
        "learning_rate": 2e-4,
        "schedule": "steps",
        "warmup_steps": 0,
        "boundaries": (5 * STEPS_PER_EPOCH, 10 * STEPS_PER_EPOCH, 15 * STEPS_PER_EPOCH),
        "factors": (0.5, 0.25, 0.125),
        "weight_decay": 0.0,
        "clip_norm": config_dict.placeholder(float),
        "multipliers": {"encoder": 1.0},  # of the learning rate; 0 freezes
        "layer_decay": 1.0,  # ratio of the encoder's rates between layers; 1: none
    }

    config.data = ConfigDict()
    config.data.train = ConfigDict()
    config.data.train.source = {
        "name": "adverse",
        "root": "runs/adverse_driving",
        "conditions": config_dict.placeholder(tuple),  # of its images; None: all
    }
    config.data.train.augmentation = {
        "name": "distillation",
        "crop": (320, 576),
        "flip": 0.5,
        "rotation": 0.0,
        "jitter": 0.2,
        "rgb_shift": 0.0,  # levels of 255
        "scale": (1.0, 1.0),  # relative to just covering the crop
    }
    config.data.train.clean_share = 1 / 3  # share of images that are clean, not generated
    config.data.train.num_workers = 8
    config.data.train.num_threads = 2
    config.data.evaluation = {"name": "nuscenes", "root": "data/nuscenes", "split": "val"}
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 0  # the labels are not measured depth
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "nuscenes", "flip_tta": False}
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 2000, "keep": 2}
    config.logging = {"every_steps": 100}
    return config
