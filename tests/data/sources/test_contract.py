"""What every data source file offers."""

import dataclasses
from pathlib import Path

import pytest

from diffdepth_jax import registry
from diffdepth_jax.errors import MissingFileError


@pytest.mark.parametrize("name", [n for n in registry.names("source") if n != "mixture"])
def test_source_file(name: str, tmp_path: Path) -> None:
    module = registry.module("source", name)
    low, high = module.DEPTH_RANGE
    assert 0 < low < high
    assert "root/" in module.__doc__, "the docstring must show the layout"
    config = module.Config()
    assert dataclasses.is_dataclass(config) and config.name == name
    assert config.check_files  # can be switched off to skip missing files
    with pytest.raises(MissingFileError, match=r"nowhere .*set root"):
        module.source(config.split, tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"nowhere .*set root"):
        module.build(dataclasses.replace(config, root=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="split is 'no such split'"):
        module.source("no such split", tmp_path)
    with pytest.raises(TypeError, match="no_such_option"):
        module.source(config.split, tmp_path, no_such_option=1)
