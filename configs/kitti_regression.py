"""Plain regression on KITTI: the control for `configs/kitti.py`.

    python train.py --config=configs/kitti_regression.py --workdir=runs/kitti_regression \
        --config.data.train.source.root=RAW --config.data.train.source.depth_root=ANNOTATED

The same encoder, neck, decoder, data, pixel losses and schedule, but no diffusion; see
`diffdepth_jax/models/networks/regression.py`, and `configs/kitti.py` for RAW and ANNOTATED.

Expected hours: not measured here; a full-size step needs a large GPU. Expected numbers: none are
published for this network.
"""

from ml_collections import ConfigDict, FieldReference, config_dict

STEPS_PER_EPOCH = 23_158 // 8


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 8
    config.num_steps = 30 * STEPS_PER_EPOCH
    config.ema_decay = 0.0
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    config.model = ConfigDict()
    config.model.name = "regression"
    config.model.encoder = {
        "name": "swin",
        "variant": "large",
        "drop_path_rate": 0.1,
        "remat": "none",
    }
    config.model.neck = {"features": 256, "hahi": True, "hahi_features": 512}
    config.model.codec = {"factor": 2, "latent_channels": 16}
    config.model.hidden_features = 64
    config.model.max_depth = 80.0  # of predictions

    config.init = {
        "encoder": config_dict.placeholder(str),  # a file of pretrained weights
        "network": config_dict.placeholder(str),  # or of a whole network: a run or a file
    }

    config.objective = {
        "name": "pixel",
        "l1": 1.0,
        "l2": 1.0,
        "silog": 0.0,
        "max_depth": 88.0,
        "silog_options": {"scale": 10.0, "variance_focus": 0.85},
        "auxiliary_fraction": 1.0,  # share of the run in which l1 and l2 apply
    }

    config.optimizer = {
        "name": "adam",
        "learning_rate": 1e-3,
        "schedule": "steps",
        "warmup_steps": STEPS_PER_EPOCH,
        "boundaries": (10 * STEPS_PER_EPOCH, 15 * STEPS_PER_EPOCH),
        "factors": (0.2, 0.04),
        "weight_decay": 0.0,
        "clip_norm": config_dict.placeholder(float),
        "multipliers": {"encoder": 1.0},  # of the learning rate; 0 freezes
    }

    root = FieldReference("data/kitti")
    depth_root = config_dict.placeholder(str)  # None: the same as root
    config.data = ConfigDict()
    config.data.train = ConfigDict()
    config.data.train.source = {
        "name": "kitti",
        "root": root,
        "depth_root": depth_root,
        "split": "eigen_train",
        "cameras": ("image_02",),
    }
    config.data.train.augmentation = {
        "name": "kitti",
        "crop": (352, 906),
        "flip": 0.5,
        "rotation": 5.0,
        "jitter": 0.4,
        "scale": (1.0, 1.5),
    }
    config.data.train.num_workers = 8
    config.data.train.num_threads = 2
    config.data.evaluation = {
        "name": "kitti",
        "root": root.identity(),
        "depth_root": depth_root.identity(),
        "split": "eigen_test",
    }
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 200
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {
        "protocol": "kitti_eigen",
        "crop": "garg",
        "crop_reference": "kb",
        "flip_tta": False,
    }
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 2000, "keep": 3}
    config.logging = {"every_steps": 100}
    return config
