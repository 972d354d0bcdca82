"""Weight directories as transformers writes them."""

import json
import shutil

import numpy as np
import pytest

from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.weights import files, hugging_face
from tests.weights import torch_writer

ARRAYS = {"a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(2, "f4")}


def write_shards(directory, **changes):
    places = {}
    for index, (name, array) in enumerate(ARRAYS.items(), 1):
        places[name] = f"model-{index:05}-of-00002.safetensors"
        files.write_safetensors(directory / places[name], {name: array})
    index = {"metadata": {"total_size": 32}, "weight_map": places} | changes
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return places


def test_one_file_shards_and_pytorch_files_read_the_same(tmp_path):
    assert hugging_face.weights_in(tmp_path) is None
    (tmp_path / "training_args.bin").write_bytes(b"no weights at all")
    tensors = {name: torch_writer.whole(name, array) for name, array in ARRAYS.items()}
    torch_writer.write_zip(tmp_path / "pytorch_model.bin", tensors, ARRAYS)
    written = [tmp_path / "pytorch_model.bin"]
    write_shards(tmp_path)
    written.append(tmp_path / "model.safetensors.index.json")
    files.write_safetensors(tmp_path / "model.safetensors", ARRAYS)
    written.append(tmp_path / "model.safetensors")
    while written:
        path = written.pop()
        assert hugging_face.weights_in(tmp_path) == path
        read = hugging_face.read(path).state_dict
        assert list(read) == list(ARRAYS)
        assert all(np.array_equal(read[name], array) for name, array in ARRAYS.items())
        path.unlink()
        for shard in tmp_path.glob("model-*") if path.suffix == ".json" else ():
            shard.unlink()


def test_weights_under_another_name_are_read_if_they_are_the_only_ones(tmp_path):
    files.write_safetensors(tmp_path / "model.fp16.safetensors", ARRAYS)
    assert hugging_face.weights_in(tmp_path) == tmp_path / "model.fp16.safetensors"
    shutil.copy(tmp_path / "model.fp16.safetensors", tmp_path / "model.fp32.safetensors")
    with pytest.raises(
        ConfigError, match=r"2 weights files.*model\.fp16\.safetensors, model\.fp32"
    ):
        hugging_face.weights_in(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weight_map": ["model.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"a.weight": 3}}, "has no weight_map"),
        ({"weight_map": {"a.weight": "../other.safetensors"}}, "not in the same folder"),
        ({"weight_map": {"a.weight": ".."}}, "not in the same folder"),
        ({"weight_map": {"c": "model-00001-of-00002.safetensors"}}, "lacks 1 entries.*'c'"),
        ({"weight_map": {"a.weight": "gone.safetensors"}}, r"gone\.safetensors does not exist"),
    ],
)
def test_an_index_is_checked(tmp_path, changes, message):
    write_shards(tmp_path, **changes)
    with pytest.raises((WeightsError, FileNotFoundError), match=message):
        hugging_face.read(tmp_path / "model.safetensors.index.json")


def test_an_index_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text("{")
    with pytest.raises(WeightsError, match=r"index\.json is not valid JSON"):
        hugging_face.read(path)


def test_only_a_models_config_counts_as_one(tmp_path):
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    assert hugging_face.config_beside(weights) == {}
    for text in ('["model_type"]', '{"architecture": "resnet50"}', '{"model_type": 3}'):
        config.write_text(text)
        assert hugging_face.config_beside(weights) == {}
    config.write_text('{"model_type": "dpt", "hidden_size": 8}')
    assert hugging_face.config_beside(weights) == {"model_type": "dpt", "hidden_size": 8}
    config.write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is not valid JSON"):
        hugging_face.config_beside(weights)
