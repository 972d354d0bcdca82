r"""Rendered streets at night and in fog, rain and snow, as pairs with a teacher's labels.

    python tools/render_scenes.py --kind=street --count=240 --split=train --size=64x208 \
        --layout=kitti --conditions=night,fog,rain,snow,night-rain --output=data/streets
    python generate_adverse.py --config=configs/adverse_rendered.py \
        --workdir=runs/adverse_rendered --config.teacher.checkpoint=RUN

Clear frames are in `data/streets`, those of a condition under the same names in
`data/streets/CONDITION`. Nothing is generated: the pictures are paired with the teacher's depth of
the clear frame, with the same manifest, checks and gallery as generated ones, for training with the
source `adverse`. Images from any other tool can be used in the same way;
`--config.backend.pattern` says where they are. For table-tops:
`--config.conditions="('transparent', 'mirror')"`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.conditions = ("night", "fog", "rain", "snow", "night-rain")
    config.variants = 1
    config.limit = config_dict.placeholder(int)  # number of frames, spread evenly
    config.labels = "teacher"  # or "source", the exact depth
    config.cache = config_dict.placeholder(str)  # a folder for predicted depth, shared between runs

    config.source = {
        "name": "kitti",
        "root": "data/streets/raw",
        "depth_root": "data/streets/depth",
        "depth": "dense",
        "split": "train",
    }
    config.teacher = {
        "checkpoint": config_dict.placeholder(str),
        "num_inference_steps": config_dict.placeholder(int),
        "batch_size": 8,
    }
    config.teacher.options = {}  # what the weights do not say, such as {"version": 2}
    config.backend = {
        "name": "files",
        "root": "data/streets",
        "pattern": "{condition}/{path}.*",
        "maker": "rendered",
    }
    # Rendered scenes keep their depth by construction: nothing is rejected.
    config.structure = {
        "max_abs_rel": config_dict.placeholder(float),
        "min_edge_agreement": config_dict.placeholder(float),
        "worst_share": 0.0,
    }
    config.gallery = {"frames": 40, "width": 320}
    return config
