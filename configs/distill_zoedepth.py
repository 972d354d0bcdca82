"""ZoeDepth made robust: self-distillation on generated images (Tosi et al., ECCV 2024).

    python train.py --config=configs/distill_zoedepth.py --workdir=runs/distill_zoedepth \
        --config.data.train.source.root=PAIRS --config.data.evaluation.root=NUSCENES

PAIRS is a workdir of generate_adverse.py with ZoeDepth's labels;
`configs/distill_depth_anything.py` shows how to make one and says more about the method
(arXiv:2407.16698). 30,000 steps of 3 images, 384 pixels on a side, learning rate 1e-6, and a tenth
of it from step 25,000. The loss ignores scale and shift, here of depth; the objective `metric` also
preserves metres. Where the paper is silent, the choice is ours: colour jitter and shift, weight
decay, and that a third of the images, one in each batch, are clean. Nor does it say which of the
three networks it used; this is the outdoor one.

Labels are the teacher's depth of the clean images, which generate_adverse.py stored with the pairs;
with `--config.teacher.checkpoint=ZoeD_M12_K.pt` they are computed during training instead, on
exactly the crop that the student sees.

Expected hours: not measured here. Expected numbers, from the paper, not ours (AbsRel on nuScenes'
validation, day-clear / night / day-rain): 0.181 / 0.258 / 0.217 before, 0.181 / 0.211 / 0.199
after.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 3
    config.num_steps = 30_000
    config.ema_decay = 0.0
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    config.model = ConfigDict()
    config.model.name = "zoedepth"
    config.model.variant = "k"

    config.init = {
        "network": "ZoeD_M12_K.pt",  # what the student starts from: a run or a file
        "encoder": config_dict.placeholder(str),  # or encoder weights only
    }
    config.init.options = {}  # what the file name does not say, such as {"version": 2}
    # With a checkpoint here, labels are computed during training; otherwise they are in the data.
    config.teacher = {
        "checkpoint": config_dict.placeholder(str),
        "num_inference_steps": config_dict.placeholder(int),
    }
    config.teacher.options = {}

    config.objective = {
        "name": "ssi",
        "form": "median",  # or "trimmed", "least_squares"
        "gradient": 0.0,  # weight of the multi-scale gradient term
        "space": "auto",  # inverse depth for relative labels
    }

    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-6,
        "schedule": "steps",
        "warmup_steps": 0,
        "boundaries": (25_000,),
        "factors": (0.1,),
        "weight_decay": 1e-2,
        "clip_norm": config_dict.placeholder(float),
        "multipliers": {"core": 1.0},  # of the learning rate; 0 freezes
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
        "crop": (384, 384),
        "flip": 0.5,
        "rotation": 0.0,
        "jitter": 0.2,
        "rgb_shift": 15.0,  # levels of 255
        "scale": (1.0, 1.0),  # relative to just covering the crop
    }
    config.data.train.clean_share = 1 / 3  # share of images that are clean, not generated
    config.data.train.num_workers = 8
    config.data.train.num_threads = 2
    config.data.evaluation = {"name": "nuscenes", "root": "data/nuscenes", "split": "val"}
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 0  # the labels are not measured depth
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "nuscenes", "alignment": "lsq_disparity", "flip_tta": False}
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 2000, "keep": 2}
    config.logging = {"every_steps": 100}
    return config
