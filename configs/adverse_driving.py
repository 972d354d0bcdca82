r"""Driving images at night and in rain, fog, snow, glare and dust, by Stable Diffusion.

    python generate_adverse.py --config=configs/adverse_driving.py --workdir=runs/adverse_driving \
        --config.teacher.checkpoint=FILE --config.backend.base=PATH --config.backend.control=PATH

The recipe of "Diffusion Models for Monocular Depth Estimation: Overcoming Challenging Conditions"
(Tosi et al., 2024): the teacher's depth of the clean image steers the generator, through a
T2I-Adapter, and labels the result. 50 DDIM steps, guidance 7.5, about 512x512 pixels. The paper
generated 30,258 images for nuScenes and 17,790 for RobotCar. You provide the weights: Stable
Diffusion 1.4 or 1.5 as `base`, `t2iadapter_depth_sd14v1` or `t2iadapter_depth_sd15v2` as `control`.
Two CPU cores take some 8 minutes per image; an A100 takes 1.6 seconds without the adapter (measured
by others).

For another source, or other fields of this one: `--config.source.name=folder
--config.source.root=...`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.conditions = ("night", "rain", "night-rain", "fog", "snow", "glare", "dust")
    config.variants = 1
    config.limit = config_dict.placeholder(int)  # number of frames, spread evenly
    config.on_error = "skip"  # frames that cannot be read
    config.labels = "teacher"  # or "source", the depth of the source
    config.cache = config_dict.placeholder(str)  # a folder for predicted depth, shared between runs

    config.source = {"name": "kitti", "root": "data/kitti/raw", "split": "train"}

    config.teacher = {
        "checkpoint": config_dict.placeholder(str),
        "num_inference_steps": config_dict.placeholder(int),
        "batch_size": 4,
    }
    config.teacher.options = {}  # what the weights do not say, such as {"version": 2}
    # The network whose depth steers the generator, if it is not the teacher.
    config.steering = {
        "checkpoint": config_dict.placeholder(str),
        "num_inference_steps": config_dict.placeholder(int),
        "batch_size": 4,
    }
    config.steering.options = {}

    config.backend = {
        "name": "diffusers",
        "pipeline": "t2i_adapter",
        "base": config_dict.placeholder(str),
        "control": config_dict.placeholder(str),
        "num_inference_steps": 50,
        "area": config_dict.placeholder(int),  # pixels; None: as the model was trained
        "batch_size": 1,
    }
    config.prompts = {"files": (), "scene": config_dict.placeholder(str)}
    # Images beyond these limits are marked as rejected and left out of training.
    config.structure = {
        "max_abs_rel": config_dict.placeholder(float),
        "min_edge_agreement": config_dict.placeholder(float),
        "worst_share": 0.05,
    }
    config.gallery = {"frames": 100, "width": 320}
    return config
