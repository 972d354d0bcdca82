r"""Self-distillation of the demo's regression network: robust to night, fog, rain and snow.

    python train.py --config=configs/distill_demo.py --workdir=runs/distill_demo \
        --config.init.network=runs/demo_regression \
        --config.data.train.source.root=runs/pairs

The student starts from the teacher, a run of `configs/demo_regression.py`, and learns the teacher's
depth of each clean picture, from that picture and from the same scene in difficult weather
(`runs/pairs`, a workdir of `generate_adverse.py` with that teacher's labels). No measured depth is
used. `studies/robustness.py` makes all three and reports the results; `docs/results.md` has the
numbers.

The labels are in metres, and so is the loss: one that ignores scale leaves the scale wrong in snow.
The labels cover the sky as well, to which the teacher gives some depth: without labels there, a
student would be free to change it.
"""

from ml_collections import ConfigDict, FieldReference, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 4
    config.num_steps = 400
    config.ema_decay = 0.0
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    config.model = ConfigDict()  # the teacher's
    config.model.name = "regression"
    config.model.encoder = {
        "name": "torchvision_resnet",
        "depths": (2, 2, 2, 2),
        "widths": (32, 64, 128, 256),
    }
    config.model.neck = {"features": 64, "hahi": False}
    config.model.codec = {"factor": 4, "latent_channels": 16, "initial_depth": 15.0}
    config.model.hidden_features = 32
    config.model.max_depth = 80.0

    config.init = {
        "encoder": config_dict.placeholder(str),
        "network": config_dict.placeholder(str),  # the teacher
    }

    config.objective = {
        "name": "pixel",
        "l1": 1.0,
        "l2": 0.0,
        "silog": 1.0,
        "max_depth": 80.0,
        "silog_options": {"scale": 10.0, "variance_focus": 0.85},
        "auxiliary_fraction": 1.0,  # share of the run in which l1 and l2 apply
    }

    config.optimizer = {
        "name": "adamw",
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "warmup_steps": 20,
        "weight_decay": 1e-2,
        "clip_norm": config_dict.placeholder(float),
        "multipliers": {"encoder": 1.0},  # of the learning rate; 0 freezes
    }

    root = FieldReference("sample/raw")
    depth_root = FieldReference("sample/depth")
    config.data = ConfigDict()
    config.data.train = ConfigDict()
    config.data.train.source = {"name": "adverse", "root": "runs/pairs"}
    config.data.train.clean_share = 0.5  # share of every batch that are clean pictures
    config.data.train.augmentation = {
        "name": "kitti",
        "crop": (64, 208),
        "flip": 0.5,
        "rotation": 0.0,
        "jitter": 0.1,
        "scale": (1.0, 1.0),
    }
    config.data.train.depth_range = config_dict.placeholder(tuple)  # includes the sky
    config.data.train.cache = True
    config.data.train.num_workers = 0
    config.data.train.num_threads = 1
    config.data.evaluation = {
        "name": "kitti",
        "root": root,
        "depth_root": depth_root,
        "depth": "dense",
        "split": "val",
    }
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 0  # labels are not measurements
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "dense", "flip_tta": True}
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 400, "keep": 1}
    config.logging = {"every_steps": 10}
    return config
