"""DiffusionDepth with Swin-L and HAHI on KITTI (Duan, Guo, Zhu; ECCV 2024, arXiv:2303.05021).

    python train.py --config=configs/kitti.py --workdir=runs/kitti \
        --config.data.train.source.root=RAW --config.data.train.source.depth_root=ANNOTATED

RAW is the folder of KITTI's raw data, ANNOTATED that of data_depth_annotated.zip (by default the
same); evaluation reads from there too unless `config.data.evaluation` says otherwise.
Layouts: `diffdepth_jax/data/sources/kitti.py`.

Data, augmentation, loss and schedule are the release's, on the Eigen split (about 23,000 training
frames from the left camera; 652 test frames). The paper's encoder starts from ImageNet weights:
`--config.init.encoder=FILE` (Swin-L from Microsoft, timm, Hugging Face or mmcv). Schedule and
number of steps are meant for 8 images per step: with another batch size, change `num_steps` and
`optimizer` accordingly.

Overrides for the paper's recipe, as far as it is published:

    --config.model.denoiser.variant=paper --config.objective.silog=1.0 \
    --config.objective.latent=1.0 --config.objective.ddim=1.0 \
    --config.objective.auxiliary_fraction=0.5 --config.optimizer.name=adamw \
    --config.optimizer.schedule=cosine --config.optimizer.boundaries='()' \
    --config.optimizer.factors='()' --config.optimizer.learning_rate=1e-4 \
    --config.optimizer.weight_decay=0.01

The weights of the loss terms are not published. AdamW is the paper's; learning rate, schedule and
weight decay are our choice of common values for Swin.

Expected hours: not measured here; a full-size step needs a large GPU.
Cores needed to feed 8 A100s, on paper: the denoiser's 1.5 million multiply-adds per latent pixel
and step, 176x453 pixels, 20 steps and four passes (forward, again for remat, backward) make 19
TFLOP per image; at half of the TF32 peak (156 TFLOP/s), with everything else free, 8 devices take
33 images per second, 66 in bfloat16. An image costs 50 ms of a core (results/throughput.csv): 2
cores, or 4 in bfloat16.
Expected numbers, from the paper, not ours (KITTI Eigen, 0-80 m): AbsRel 0.050, RMSE 2.016, delta1
0.977.
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
