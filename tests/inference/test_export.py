"""export() in both layouts; `test_contract.py` has what holds for every network."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import safetensors

import diffdepth_jax
from diffdepth_jax import inference
from diffdepth_jax.errors import ConfigError, FileError
from diffdepth_jax.inference.export import check_target
from diffdepth_jax.models.networks import diffusion_depth
from diffdepth_jax.weights import files


@pytest.fixture
def model(released_state_dict) -> diffdepth_jax.DepthModel:
    return diffdepth_jax.load(released_state_dict, max_depth=20.0)


def test_a_transformers_directory_loads_again(model, layout, tmp_path):
    path = tmp_path / "exported"
    lost = inference.export(model, path, "transformers")
    assert lost == []
    assert sorted(os.listdir(path)) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    config = json.loads((path / "config.json").read_text())
    assert config == {"model_type": "diffusion_depth", "max_depth": 20.0}
    with safetensors.safe_open(path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(name.startswith("model.") for name in file.keys())  # noqa: SIM118
    again = diffdepth_jax.load(path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
    assert os.listdir(tmp_path) == ["exported"]


def test_only_a_new_or_empty_directory_is_written_to(model, layout, tmp_path):
    (tmp_path / "empty").mkdir()
    inference.export(model, tmp_path / "empty", "transformers")
    for taken in (tmp_path / "empty", tmp_path / "empty" / "config.json"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError, match=f"{taken} already exists.*new or empty"):
            inference.export(model, taken, "transformers")
        with pytest.raises(ConfigError, match="new or empty"):
            check_target(taken, tmp_path / "run", "transformers")
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(FileError, match="there is no folder"):
        inference.export(model, tmp_path / "no" / "where", "transformers")


def test_a_failed_export_leaves_nothing(model, layout, tmp_path, monkeypatch):
    codec = dataclasses.replace(model.config.codec, latent_channels=16)
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, codec=codec))
    with pytest.raises(ConfigError, match="'diffusion_depth': latent_channels are more than 9"):
        inference.export(other, tmp_path / "a", "transformers")

    def full(path, state_dict, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_safetensors", full)
    with pytest.raises(FileError, match="a cannot be written: No space left"):
        inference.export(model, tmp_path / "a", "transformers")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_format_is_not_replaced(model, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"weights\.pt must end in \.safetensors"):
        inference.export(model, path)
    assert path.read_bytes() == b"weights"


def test_an_unknown_layout_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="'torch'; it must be 'authors' or 'transformers'"):
        inference.export(model, tmp_path / "a", "torch")
    assert diffusion_depth.TRANSFORMERS is None
    with pytest.raises(ConfigError, match=r"no network 'diffusion_depth'.*layout='authors'"):
        inference.export(model, tmp_path / "a", "transformers")
    assert not list(tmp_path.iterdir())
