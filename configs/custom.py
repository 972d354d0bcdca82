"""Training on your own images and depth maps, with the release's lighter model.

    python train.py --config=configs/custom.py --workdir=runs/custom \
        --config.data.train.source.root=DIR

DIR is a folder of pairs, matched by name; depth may be sparse, and is 0 where it is unknown:

    DIR/train/image/.../NAME.jpg     DIR/train/depth/.../NAME.png    (or .npy, .exr)
    DIR/val/image/.../NAME.jpg       DIR/val/depth/.../NAME.png

Any other layout that two patterns can describe works too, as do lists of frames: see
`diffdepth_jax/data/sources/folder.py`. Then set what your data need (here or with flags):

    --config.data.train.source.depth_scale=1000    stored units per metre of PNG depth
    --config.model.max_depth=10                    the largest predicted depth, metres
    --config.data.train.augmentation.crop='(352,480)'    size of training crops, at most the images'

First check that images and depth match, on the sheet that this draws:

    python tools/inspect_data.py folder --root=DIR --images='train/image/**/*.*' \
        --depths='train/depth/**/*.*' --depth_scale=1000 --output=sheet.png

Steps, learning rate and batch size are the release's for KITTI (some 23,000 images); with fewer
images use fewer steps. Expected hours and numbers depend on your data.
"""

from ml_collections import ConfigDict, FieldReference, config_dict

NUM_IMAGES = 23_000  # in the training set; the schedule counts its epochs
BATCH_SIZE = 8
STEPS_PER_EPOCH = NUM_IMAGES // BATCH_SIZE


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = BATCH_SIZE
    config.num_steps = 30 * STEPS_PER_EPOCH
    config.ema_decay = 0.0
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    max_depth = FieldReference(80.0)  # metres
    config.model = ConfigDict()
    config.model.name = "diffusion_depth"
    config.model.encoder = {"name": "resnet", "variant": "18"}
    config.model.neck = {"features": 256, "hahi": False}
    config.model.codec = {"factor": 2, "latent_channels": 16}
    config.model.denoiser = {"variant": "official", "hidden_features": 64, "fuse": False}
    config.model.diffusion = {"num_inference_steps": 20}
    config.model.max_depth = max_depth  # of predictions
    config.model.remat = "full"

    config.init = {
        "encoder": config_dict.placeholder(str),  # a file of pretrained weights
        "network": config_dict.placeholder(str),  # or of a whole network: a run or a file
    }

    config.objective = {
        "name": "self_diffusion",
        "l1": 1.0,
        "l2": 1.0,
        "silog": 0.0,
        "latent": 0.0,
        "ddim": 0.5,
        "max_depth": max_depth.identity(),
        "silog_options": {"scale": 10.0, "variance_focus": 0.85},
        "auxiliary_fraction": 1.0,  # share of the run in which l1 and l2 apply
        "ddim_weighting": "noise",
        "gradient_steps": config_dict.placeholder(int),  # None: through the whole sampler
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

    root = FieldReference("data/custom")
    depth_scale = config_dict.placeholder(float)  # required for PNG; other formats hold metres
    intrinsics = config_dict.placeholder(str)
    config.data = ConfigDict()
    config.data.train = ConfigDict()
    config.data.train.source = {
        "name": "folder",
        "root": root,
        "split": "all",
        "images": "train/image/**/*.*",
        "depths": "train/depth/**/*.*",
        "depth_scale": depth_scale,
        "intrinsics_file": intrinsics,
    }
    config.data.train.augmentation = {
        "name": "kitti",
        "crop": (352, 480),
        "flip": 0.5,
        "rotation": 5.0,
        "jitter": 0.4,
        "scale": (1.0, 1.5),
    }
    config.data.train.num_workers = 8
    config.data.train.num_threads = 2
    config.data.evaluation = {
        "name": "folder",
        "root": root.identity(),
        "split": "all",
        "images": "val/image/**/*.*",
        "depths": "val/depth/**/*.*",
        "depth_scale": depth_scale.identity(),
        "intrinsics_file": intrinsics.identity(),
    }
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 200
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "dense", "max_depth": max_depth.identity(), "flip_tta": False}
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 2000, "keep": 3}
    config.logging = {"every_steps": 100}
    return config
