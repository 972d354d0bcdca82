r"""The demo's DiffusionDepth for 1, 2 or 4 denoising steps, as requested.

    python train.py --config=configs/few_steps_demo.py --workdir=runs/few_steps
    python predict.py --checkpoint=runs/few_steps --num_inference_steps=1 \
        --input=sample/raw --output=runs/few_steps/depth

Four things differ from `configs/demo.py`. Every update draws one of three numbers of steps. The
timesteps start at pure noise ("trailing"), so that a single step can be a whole prediction. The
denoiser predicts the clean latent, which its last GroupNorm keeps at about unit size; starting from
pure noise, the first step would multiply predicted noise by 158. And the decoder ends up with batch
statistics for each number of steps. An update costs about as much as one with 2 steps.
`studies/few_steps.py` compares them; `docs/results.md` has the numbers.
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
    config.model.name = "diffusion_depth"
    config.model.encoder = {
        "name": "torchvision_resnet",
        "depths": (2, 2, 2, 2),
        "widths": (32, 64, 128, 256),
    }
    config.model.neck = {"features": 64, "hahi": False}
    # Starts at about the sample's mean depth; PyTorch's start, 1 m, would waste 50 iterations.
    config.model.codec = {"factor": 4, "latent_channels": 16, "initial_depth": 15.0}
    config.model.denoiser = {"variant": "official", "hidden_features": 32, "fuse": False}
    config.model.diffusion = {
        "num_inference_steps": 4,  # unless the caller asks for another number
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
        "clip_sample": config_dict.placeholder(float),
    }
    config.model.max_depth = 80.0
    config.model.remat = "convolutions"

    config.init = {
        "encoder": config_dict.placeholder(str),  # a file of pretrained weights
        "network": config_dict.placeholder(str),  # or of a whole network: a run or a file
    }

    config.objective = {
        "name": "self_diffusion",
        "l1": 1.0,
        "l2": 0.0,
        "silog": 1.0,
        "latent": 0.0,
        "ddim": 1.0,
        "max_depth": 80.0,
        "silog_options": {"scale": 10.0, "variance_focus": 0.85},
        "auxiliary_fraction": 1.0,  # share of the run in which l1 and l2 apply
        "ddim_weighting": "noise",
        "gradient_steps": config_dict.placeholder(int),  # None: through the whole sampler
        "step_counts": (1, 2, 4),  # every update draws one of them
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
