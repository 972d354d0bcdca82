"""Depth Anything V2 (Yang et al. 2024, arXiv:2406.09414) fine-tuned on your own images and depth.

    python train.py --config=configs/finetune_depth_anything.py --workdir=runs/finetuned \
        --config.data.train.source.root=DIR
    python predict.py --checkpoint=runs/finetuned --input=IMAGES --output=OUT

DIR is a folder of pairs, matched by name; depth may be sparse, and is 0 where it is unknown:

    DIR/train/image/.../NAME.jpg     DIR/train/depth/.../NAME.png    (or .npy, .exr)
    DIR/val/image/.../NAME.jpg       DIR/val/depth/.../NAME.png

Any other layout that two patterns can describe works too, as do lists of frames: see
`diffdepth_jax/data/sources/folder.py`. PNG needs its unit:
`--config.data.train.source.depth_scale=` 1000 for millimetres, 256 for KITTI's. First check that
images and depth match, on the sheet that `python tools/inspect_data.py folder --root=DIR ...`
draws.

The network stays relative: your depth is inverted and compared up to scale and shift, with MiDaS's
trimmed loss and its gradient term, so depth in any unit and of mixed origin will do. For depth in
metres use the metric form, which starts from a metric file:

    python train.py --config=configs/finetune_depth_anything.py:metric --workdir=runs/finetuned \
        --config.data.train.source.root=DIR --config.model.max_depth=20.0 \
        --config.init.network=depth_anything_v2_metric_hypersim_vits.pth

`max_depth` is the largest predicted depth and must match the file: 20 m for `hypersim` (indoors),
80 m for `vkitti` (outdoors). For any other range use
`--config=configs/finetune_depth_anything.py:metric_from_encoder`, which starts from the encoder of
a relative file (`--config.init.encoder=FILE`), as the metric files did, and needs longer training.

Other sizes: `--config.model.variant=v2_base` or `v2_large`, with their weights in `init.network`.
Images may have any size: each is resized to just cover the crop of 518x518 pixels. To save memory,
use a smaller crop (multiples of 14), `--config.accumulate=4`, `--config.model.encoder.remat=full`,
or freeze the encoder:
`--config.optimizer.multipliers.encoder=0 --config.optimizer.layer_decay=1`. The rates are those of
Depth Anything V2's metric fine-tuning (5e-6 for the encoder, ten times that for the head), with the
encoder's falling from layer to layer as in BEiT's fine-tuning; batch size and steps are our choice,
for a few thousand images.

Expected hours and numbers depend on your data.
"""

from ml_collections import ConfigDict, FieldReference, config_dict

FORMS = ("relative", "metric", "metric_from_encoder")


def get_config(form: str = "relative") -> ConfigDict:
    if form not in FORMS:
        raise ValueError(f"the form is {form!r}; it must be one of {', '.join(FORMS)}")
    metric = form != "relative"

    config = ConfigDict()
    config.seed = 0
    config.batch_size = 8
    config.num_steps = 10_000
    config.ema_decay = 0.999
    config.accumulate = 1  # process each batch in this many parts
    config.compute_dtype = "float32"

    max_depth = FieldReference(20.0) if metric else config_dict.placeholder(float)  # metres
    config.model = ConfigDict()
    config.model.name = "depth_anything"
    config.model.variant = "v2_small"
    config.model.encoder = {"name": "dinov2", "remat": "none", "drop_path_rate": 0.0}
    config.model.max_depth = max_depth  # of predictions; None: relative ones

    network, encoder = {
        "relative": ("depth_anything_v2_vits.pth", None),
        "metric": ("depth_anything_v2_metric_hypersim_vits.pth", None),
        "metric_from_encoder": (None, "depth_anything_v2_vits.pth"),
    }[form]
    config.init = {"network": network, "encoder": encoder}  # a file or a run; encoder weights only
    config.init.options = {}  # what the file name does not say, such as {"version": 2}

    if metric:
        config.objective = {
            "name": "metric",
            "l1": 0.0,
            "silog": 1.0,
            "max_depth": max_depth.identity(),
            "silog_options": {"scale": 1.0, "variance_focus": 0.5},  # Depth Anything V2's
        }
    else:
        config.objective = {
            "name": "ssi",
            "form": "trimmed",
            "gradient": 0.5,
            "space": "auto",  # inverse depth, as the network predicts it
        }

    config.optimizer = {
        "name": "adamw",
        "learning_rate": 5e-5,
        "schedule": "cosine",
        "warmup_steps": 500,
        "weight_decay": 1e-2,
        "clip_norm": 1.0,
        "multipliers": {"encoder": 0.1},  # of the learning rate; 0 freezes
        "layer_decay": 0.9,  # ratio of the encoder's rates between layers; 1: none
    }

    root = FieldReference("data/custom")
    depth_scale = config_dict.placeholder(float)  # required for PNG; other formats hold metres
    config.data = ConfigDict()
    config.data.train = ConfigDict()
    config.data.train.source = {
        "name": "folder",
        "root": root,
        "split": "all",
        "images": "train/image/**/*.*",
        "depths": "train/depth/**/*.*",
        "depth_scale": depth_scale,
    }
    config.data.train.augmentation = {
        "name": "distillation",
        "crop": (518, 518),
        "flip": 0.5,
        "rotation": 0.0,
        "jitter": 0.2,
        "rgb_shift": 10.0,  # levels of 255
        "scale": (1.0, 1.0),  # relative to just covering the crop
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
    }
    config.data.evaluation_limit = config_dict.placeholder(int)
    config.data.baseline_frames = 200
    config.data.on_error = "raise"  # or "skip" frames that cannot be read

    config.evaluation = {"protocol": "dense", "flip_tta": False}
    if metric:
        config.evaluation.max_depth = max_depth.identity()
    else:
        config.evaluation.alignment = "lsq_disparity"
    config.mesh = {"data": config_dict.placeholder(int), "fsdp": 1}  # devices
    config.checkpoint = {"every_steps": 1000, "keep": 2}
    config.logging = {"every_steps": 50}
    return config
