"""DiffusionDepth with Depth Anything's DINOv2 encoder on KITTI.

    python train.py --config=configs/kitti_dinov2.py --workdir=runs/kitti_dinov2 \
        --config.init.encoder=depth_anything_v2_vitl.pth \
        --config.data.train.source.root=RAW --config.data.train.source.depth_root=ANNOTATED

Like `configs/kitti.py`, with the ViT-L of Depth Anything V2 instead of Swin-L. `init.encoder` takes
the files of Depth Anything V1 and V2, relative or metric, and DINOv2's own, with the authors' names
or transformers'. The encoder is frozen: its features are what makes Depth Anything robust, and
KITTI's few scenes would erode that. To train it too, at a tenth of the rate and with its blocks
recomputed to save memory:

    --config.optimizer.multipliers.encoder=0.1 --config.model.encoder.remat=full \
    --config.model.encoder.drop_path_rate=0.1

For a smaller encoder (of V2's weights only the small ones may be used commercially):

    --config.model.encoder.variant=small --config.model.neck.reassemble='(48, 96, 192, 384)'

The maps are those that V2's head uses (after blocks 4, 11, 17 and 23), also with weights of V1.
They are reassembled at strides of 3.5 to 28 pixels, so the condition has a stride of 3.5, close to
the 4 of Swin-L. Crops are multiples of the patch size, 14 pixels; images in evaluation are resized
to such sizes, by less than 1%, and depth is resized back.

Expected hours and numbers: not measured here.
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
        "name": "dinov2",
        "variant": "large",
        "drop_path_rate": 0.0,
        "remat": "none",
    }
    config.model.neck = {
        "features": 256,
        "reassemble": (256, 512, 1024, 1024),  # channels, as in Depth Anything's head
        "hahi": False,
    }
    config.model.codec = {"factor": 2, "latent_channels": 16}
    config.model.denoiser = {"variant": "official", "hidden_features": 64, "fuse": True}
    config.model.diffusion = {"num_inference_steps": 20}
    config.model.max_depth = 80.0  # of predictions
    config.model.remat = "full"

    config.init = {
        "encoder": "depth_anything_v2_vitl.pth",  # a file of pretrained weights
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
        "multipliers": {"encoder": 0.0},  # of the learning rate; 0 freezes
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
        "crop": (350, 910),
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
