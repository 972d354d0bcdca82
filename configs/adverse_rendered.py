r"""Night, fog, rain and snow of rendered streets, as pairs with a teacher's labels.

    python tools/render_scenes.py --kind=street --count=240 --split=train --size=64x208 \
        --layout=kitti --conditions=night,fog,rain,snow,night-rain --output=data/streets
    python generate_adverse.py --config=configs/adverse_rendered.py \
        --workdir=runs/adverse_rendered --config.teacher.checkpoint=RUN

Clear frames lie in `data/streets`, those of a condition under the same names in
`data/streets/CONDITION`. Nothing is generated: the pictures are taken up beside the teacher's depth
of the clear frame, with the same manifest, judgement and gallery as generated ones, for training by
the source `adverse`. Images of any other tool come in the same way; `--config.backend.pattern` says
where they lie. Table-tops: `--config.conditions="('transparent', 'mirror')"`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.conditions = ("night", "fog", "rain", "snow", "night-rain")
    config.variants = 1
    config.limit = config_dict.placeholder(int)  # frames, spread evenly
    config.labels = "teacher"  # or "source", the exact depth
    config.cache = config_dict.placeholder(str)  # a folder of predicted depth, for several runs

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
    config.teacher.options = {}  # what weights do not tell, as {"version": 2}
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
