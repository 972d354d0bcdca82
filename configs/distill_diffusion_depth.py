"""DiffusionDepth made robust: self-diffusion on generated images with its own labels.

    python generate_adverse.py --config=configs/adverse_driving.py --workdir=runs/adverse_driving \
        --config.source.root=KITTI --config.teacher.checkpoint=runs/kitti \
        --config.backend.base=STABLE_DIFFUSION --config.backend.control=T2I_ADAPTER
    python train.py --config=configs/distill_diffusion_depth.py \
        --workdir=runs/distill_diffusion_depth --config.data.evaluation.root=NUSCENES

The two papers combined: a run of `configs/kitti.py` (Duan et al., arXiv:2303.05021) labels the
clean images of KITTI and is trained further on generated ones with its own objective, as Tosi et
al. (arXiv:2407.16698) do with other networks. The labels are dense, so the loss covers the whole
image. This combination is unpublished; steps and sizes are Tosi's, the learning rate is the last of
DiffusionDepth's schedule, and a quarter of the images are clean.

Labels are the teacher's depth of the clean images, which generate_adverse.py stored with the pairs;
with `--config.teacher.checkpoint=runs/kitti` they are computed during training instead, on exactly
the crop that the student sees.

This teacher starts from noise, which is then drawn again at every step;
`teacher.num_inference_steps` changes only the teacher's denoising steps. `config.model` must be the
teacher's.

Expected hours and numbers: not measured here.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 8
    config.num_steps = 30_000
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
    config.model.max_depth = 80.0  # of predictions
    config.model.remat = "full"

    config.init = {
        "network": "runs/kitti",  # what the student starts from: a run or a file
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
        "name": "self_diffusion",
        "l1": 1.0,
        "l2": 1.0,
        "silog": 0.0,
        "latent": 0.0,
        "ddim": 0.5,
        "max_depth": 88.0,
        "silog_options": {"scale": 10.0, "variance_focus": 0.85},
        "auxiliary_fraction": 1.0,  # share of the run in which l1 and l2 apply
        "ddim_weighting": "noise",
        "gradient_steps": config_dict.placeholder(int),  # None: through the whole sampler
    }

    config.optimizer = {
        "name": "adamw",
        "learning_rate": 4e-5,
        "schedule": "steps",
        "warmup_steps": 0,
        "boundaries": (25_000,),
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
    }
    config.data.train.augmentation = {
        "name": "distillation",
        "crop": (352, 704),
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
    config.checkpoint = {"every_steps": 2000, "keep": 2}
    config.logging = {"every_steps": 100}
    return config
