"""What the scripts share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from diffdepth_jax import cli
from diffdepth_jax.data import geometry
from diffdepth_jax.evaluation import protocols

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    evaluation = dict(protocol="kitti_eigen", crop="garg", max_depth=70.0, flip_tta=True)
    return ConfigDict(dict(seed=3, evaluation=evaluation))
"""
IN_FILE = {"protocol": "kitti_eigen", "crop": "garg", "max_depth": 70.0, "flip_tta": True}


@pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections's
@pytest.mark.parametrize(
    "arguments, given, expected",
    [
        ([], {}, IN_FILE),
        ([], {"crop": "eigen"}, IN_FILE | {"crop": "eigen"}),
        ([], {"protocol": "kitti_eigen"}, IN_FILE),
        ([], {"protocol": "release"}, {"protocol": "release", "flip_tta": True}),
        (["protocol=release"], {}, {"protocol": "release", "flip_tta": True}),
        (["protocol=kitti_eigen"], {}, IN_FILE),
        (
            ["protocol=kitti_official", "max_depth=50.0"],
            {},
            {"protocol": "kitti_official", "max_depth": 50.0, "flip_tta": True},
        ),
        (
            ["max_depth=50.0"],
            {"protocol": "release"},
            {"protocol": "release", "max_depth": 50.0, "flip_tta": True},
        ),
    ],
)
def test_another_protocol_drops_the_files_options(tmp_path, arguments, given, expected):
    (tmp_path / "config.py").write_text(CONFIG)
    values = flags.FlagValues()
    arguments = [f"--config.evaluation.{argument}" for argument in arguments]
    arguments = ["prog", f"--config={tmp_path / 'config.py'}", *arguments]
    holder = config_flags.DEFINE_config_file(
        "config", lock_config=False, flag_values=values, sys_argv=arguments
    )
    values(arguments)
    mapping = cli.mapping(holder, given, flag_values=values)
    assert mapping == {"seed": 3, "evaluation": expected}


def raised(function, *arguments):
    with pytest.raises(ValueError) as info:
        function(*arguments)
    return info.value


def test_only_what_arises_in_this_package_is_told_without_a_traceback():
    assert cli.is_own(raised(protocols.get, "absent"))
    assert cli.is_own(raised(geometry.kb_corner, (3, 4)))
    assert not cli.is_own(raised(int, "four"))
    assert not cli.is_own(raised(np.zeros(3).reshape, 2))
    assert not cli.is_own(raised(jax.jit(lambda a: jnp.broadcast_to(a, (2,))), jnp.zeros(3)))
