"""Depth Anything made robust: self-distillation on generated images (Tosi et al., ECCV 2024).

    python generate_adverse.py --config=configs/adverse_driving.py --workdir=runs/adverse_driving \
        --config.source.name=nuscenes --config.source.root=NUSCENES \
        --config.conditions="('night', 'rain')" \
        --config.teacher.checkpoint=depth_anything_vitl14.pth \
        --config.backend.base=STABLE_DIFFUSION --config.backend.control=T2I_ADAPTER
    python train.py --config=configs/distill_depth_anything.py \
        --workdir=runs/distill_depth_anything --config.data.evaluation.root=NUSCENES

The recipe of "Diffusion Models for Monocular Depth Estimation: Overcoming Challenging Conditions"
(arXiv:2407.16698): the student starts from the teacher, sees generated images of night and rain as
well as the clean ones, and learns the teacher's depth of the clean image with the scale- and
shift-invariant loss. 5,000 steps of 8 images, 518 pixels on a side, learning rate 1e-6, and a tenth
of it from step 4,500. Where the paper is silent, the choice is ours: colour jitter and shift,
weight decay, and that a quarter of the images are clean.

Labels are the teacher's depth of the clean images, which generate_adverse.py stored with the pairs;
with `--config.teacher.checkpoint=depth_anything_vitl14.pth` they are computed during training
instead, on exactly the crop that the student sees.

For another size or version, with its own weights: `--config.model.variant=v2_small
--config.init.network=depth_anything_v2_vits.pth`. For less memory:
`--config.model.encoder.remat=full`.

Expected hours: not measured here. Expected numbers, from the paper, not ours (AbsRel on nuScenes'
validation, day-clear / night / day-rain): 0.137 / 0.291 / 0.167 before, 0.134 / 0.219 / 0.157
after.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 8
    config.num_steps = 5_000
    config.ema_decay = 0.0
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    config.model = ConfigDict()
    config.model.name = "depth_anything"
    config.model.variant = "v1_large"
    config.model.encoder = {"name": "dinov2", "remat": "none", "drop_path_rate": 0.0}

    config.init = {
        "network": "depth_anything_vitl14.pth",  # what the student starts from: a run or a file
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
        "boundaries": (4_500,),
        "factors": (0.1,),
        "weight_decay": 1e-2,
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
        "relative": "inverse",  # use relative labels as they are
    }
    config.data.train.augmentation = {
        "name": "distillation",
        "crop": (518, 518),
        "flip": 0.5,
        "rotation": 0.0,
        "jitter": 0.2,
        "rgb_shift": 15.0,  # levels of 255
        "scale": (1.0, 1.0),  # relative to just covering the crop
    }
    config.data.train.clean_share = 0.25  # share of images that are clean, not generated
    config.data.train.num_workers = 8
    config.data.train.num_threads = 2
    config.data.evaluation = {"name": "nuscenes", "root": "data/nuscenes", "split": "val"}
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 0  # the labels are not measured depth
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "nuscenes", "alignment": "lsq_disparity", "flip_tta": False}
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 1000, "keep": 2}
    config.logging = {"every_steps": 100}
    return config
