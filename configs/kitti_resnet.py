"""DiffusionDepth with the release's stem-less ResNet-18 on KITTI (arXiv:2303.05021).

    python train.py --config=configs/kitti_resnet.py --workdir=runs/kitti_resnet \
        --config.data.train.source.root=RAW --config.data.train.source.depth_root=ANNOTATED

Like `configs/kitti.py`, with a lighter encoder and neck and 352x706 crops; the condition has half
the image's resolution here, so the denoiser needs no upsampling.

Expected hours: not measured here. Expected numbers: the paper reports none for this encoder on the
Eigen split; it states 14 images per second at 20 steps on an RTX 3090.
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
    config.model.name = "diffusion_depth"
    config.model.encoder = {"name": "resnet", "variant": "18"}
    config.model.neck = {"features": 256, "hahi": False}
    config.model.codec = {"factor": 2, "latent_channels": 16}
    config.model.denoiser = {"variant": "official", "hidden_features": 64, "fuse": False}
    config.model.diffusion = {"num_inference_steps": 20}
    config.model.max_depth = 80.0  # of predictions
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
        "ddim": 0.5,  # 1.0 / 2, the images on each of the release's four GPUs
        "max_depth": 88.0,
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
        "crop": (352, 706),
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
