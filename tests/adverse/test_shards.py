import pytest

from diffdepth_jax.adverse import shards
from diffdepth_jax.errors import ConfigError


def slurm(**values):
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in values.items()}


def test_the_flag_takes_precedence():
    assert shards.chosen(None, {}) is None
    assert shards.chosen("2/5", slurm(ID="1", COUNT="4")) == (2, 5)
    with pytest.raises(ConfigError, match="'5/5'"):
        shards.chosen("5/5", {})


def test_slurm_arrays():
    assert shards.chosen(None, slurm(ID="3", COUNT="4", MIN="0", MAX="3", STEP="1")) == (3, 4)
    assert shards.chosen(None, slurm(ID="4", COUNT="4", MIN="1", MAX="4")) == (3, 4)
    assert shards.chosen(None, slurm(ID="3", COUNT="4")) == (3, 4)
    assert shards.chosen(None, slurm(ID="3")) is None
    for values in (
        slurm(ID="4", COUNT="3", MIN="0", STEP="2"),
        slurm(ID="7", COUNT="3", MIN="0"),
        slurm(ID="x", COUNT="3"),
    ):
        with pytest.raises(ConfigError, match=r"--shard=I/N"):
            shards.chosen(None, values)
