"""Plain regression on the committed sample: the control for `configs/demo.py`.

    python train.py --config=configs/demo_regression.py --workdir=runs/demo_regression

The same encoder, neck, decoder, data, pixel losses and steps, but no diffusion; see
`diffdepth_jax/models/networks/regression.py`. Compare the results of `configs/demo.py` with this
one's. A step is cheaper here, as there is no sampler.
"""

from ml_collections import ConfigDict, FieldReference, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 4
    config.num_steps = 1500
    config.ema_decay = 0.0
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    config.model = ConfigDict()
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
        "encoder": config_dict.placeholder(str),  # a file of pretrained weights
        "network": config_dict.placeholder(str),  # or of a whole network: a run or a file
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
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 40,
        "weight_decay": 1e-2,
        "clip_norm": config_dict.placeholder(float),
        "multipliers": {"encoder": 1.0},  # of the learning rate; 0 freezes
    }

    root = FieldReference("sample/raw")
    depth_root = FieldReference("sample/depth")
    config.data = ConfigDict()
    config.data.train = ConfigDict()
    config.data.train.source = {
        "name": "kitti",
        "root": root,
        "depth_root": depth_root,
        "depth": "dense",
        "split": "train",
    }
    config.data.train.augmentation = {
        "name": "kitti",
        "crop": (64, 208),
        "flip": 0.5,
        "rotation": 0.0,
        "jitter": 0.1,
        "scale": (1.0, 1.0),
    }
    config.data.train.depth_range = (1e-3, 80.0)
    config.data.train.cache = True
    config.data.train.num_workers = 0
    config.data.train.num_threads = 1
    config.data.evaluation = {
        "name": "kitti",
        "root": root.identity(),
        "depth_root": depth_root.identity(),
        "depth": "dense",
        "split": "val",
    }
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 200
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "dense", "flip_tta": True}
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 400, "keep": 1}
    config.logging = {"every_steps": 10}
    return config
