r"""Transparent and mirroring objects: opaque table-tops first, then the same in glass and metal.

    python generate_adverse.py --config=configs/adverse_materials.py --workdir=runs/adverse_tom \
        --config.teacher.checkpoint=FILE --config.backend.base=PATH --config.backend.control=PATH

The recipe of "Diffusion Models for Monocular Depth Estimation: Overcoming Challenging Conditions"
(Tosi et al., 2024): Stable Diffusion generates matte objects from prompts alone, the teacher labels
them, and with the adapter, steered by that depth, they are made transparent or mirrored. The paper
generated about 20,000 scenes. `tools/export_adverse.py --part=ToM` writes the paper's data layout.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.conditions = ("glass", "mirror")
    config.variants = 1
    config.labels = "teacher"
    config.cache = config_dict.placeholder(str)  # a folder for predicted depth, shared between runs

    config.scenes = {"count": 20_000, "size": (512, 512)}

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
    config.prompts = {"files": (), "scene": "tabletop"}
    # Images beyond these limits are marked as rejected and left out of training. The teacher
    # cannot be trusted on glass, so edges and errors are only recorded.
    config.structure = {
        "max_abs_rel": config_dict.placeholder(float),
        "min_edge_agreement": config_dict.placeholder(float),
        "worst_share": 0.0,
    }
    config.gallery = {"frames": 100, "width": 320}
    return config
