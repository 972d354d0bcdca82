"""DiffusionDepth with Swin-L and HAHI on NYU Depth V2 (arXiv:2303.05021).

    python train.py --config=configs/nyu.py --workdir=runs/nyu --config.data.train.source.root=NYU

NYU is the folder of sparse-to-dense's `.h5` files (47,584 training and 654 test frames), or of
BTS's PNGs with `--config.data.train.source.layout=sync`; evaluation reads from there too unless
`config.data.evaluation` says otherwise. Layouts: `diffdepth_jax/data/sources/nyu.py`.

Augmentation, loss and schedule are the release's. The paper's encoder starts from ImageNet weights:
`--config.init.encoder=FILE` (Swin-L from Microsoft, timm, Hugging Face or mmcv). Images are
228x304, the centre of the frame at half its size, in training and (protocol `nyu_release`) in
evaluation. Schedule and number of steps are meant for 8 images per step.

Expected hours: not measured here; a full-size step needs a large GPU.
Expected numbers, from the paper, not ours (NYUv2): AbsRel 0.085, RMSE 0.295.
"""

from ml_collections import ConfigDict, FieldReference, config_dict

STEPS_PER_EPOCH = 47_584 // 8


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
    config.model.encoder = {
        "name": "swin",
        "variant": "large",
        "drop_path_rate": 0.1,
        "remat": "none",
    }
    config.model.neck = {"features": 256, "hahi": True, "hahi_features": 512}
    config.model.codec = {"factor": 2, "latent_channels": 16}
    config.model.denoiser = {"variant": "official", "hidden_features": 64, "fuse": True}
    config.model.diffusion = {"num_inference_steps": 20}
    config.model.max_depth = 10.0  # of predictions
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
        "max_depth": 10.0,
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

    root = FieldReference("data/nyu")
    layout = FieldReference("h5")
    config.data = ConfigDict()
    config.data.train = ConfigDict()
    config.data.train.source = {"name": "nyu", "root": root, "layout": layout, "split": "train"}
    config.data.train.augmentation = {
        "name": "nyu",
        "crop": (228, 304),
        "flip": 0.5,
        "rotation": 5.0,
        "jitter": 0.4,
        "scale": (1.0, 1.5),
    }
    config.data.train.num_workers = 8
    config.data.train.num_threads = 2
    config.data.evaluation = {
        "name": "nyu",
        "root": root.identity(),
        "layout": layout.identity(),
        "split": "test",
    }
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 200
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "nyu_release", "flip_tta": False}
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 2000, "keep": 3}
    config.logging = {"every_steps": 100}
    return config
