r"""The committed sample at night and in rain, fog, snow, glare and dust, by image-formation models.

    make adverse-demo    or: python generate_adverse.py --config=configs/adverse_demo.py \
                             --workdir=runs/adverse_demo --config.teacher.checkpoint=runs/demo

Needs no weights except the teacher's, which labels and judges: the demo's checkpoint or the
regression control's; in a fresh clone `make` first trains the latter for a minute. Its depth is
correspondingly coarse: `--config.labels=source` labels with the sample's exact depth instead. Takes
under three minutes on two CPU cores.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.conditions = ("night", "rain", "night-rain", "fog", "snow", "glare", "dust")
    config.variants = 1
    config.limit = 20  # number of frames, spread evenly
    config.labels = "teacher"

    config.source = {
        "name": "kitti",
        "root": "sample/raw",
        "depth_root": "sample/depth",
        "depth": "dense",
        "split": "val",
    }
    config.teacher = {
        "checkpoint": config_dict.placeholder(str),
        "num_inference_steps": config_dict.placeholder(int),
        "batch_size": 4,
    }
    config.backend = {"name": "physical"}
    config.structure = {
        "max_abs_rel": config_dict.placeholder(float),
        "min_edge_agreement": config_dict.placeholder(float),
        "worst_share": 0.05,
    }
    config.gallery = {"frames": 20, "width": 320}
    return config
