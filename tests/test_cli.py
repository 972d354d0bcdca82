"""What the scripts share."""

import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from diffdepth_jax import cli

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


SCRIPT = """
import sys
from diffdepth_jax import cli, errors

def main(_):
    raise {error}

cli.run(main)
"""


@pytest.mark.parametrize(
    "error, one_line",
    [
        ("errors.ConfigError('the crop is 7')", True),
        ("errors.WeightsError('the crop is 7')", True),
        ("errors.MissingFileError('the crop is 7')", True),
        ("ValueError('the crop is 7')", False),
        ("OSError('the crop is 7')", False),
        ("FloatingPointError('the crop is 7')", False),
    ],
)
def test_user_errors_alone_lose_their_traceback(tmp_path, error, one_line):
    (tmp_path / "script.py").write_text(SCRIPT.format(error=error))
    result = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ("Traceback" in result.stderr) is not one_line
    assert result.stderr.splitlines()[-1].endswith("the crop is 7")
    assert result.returncode == (2 if one_line else 1)
