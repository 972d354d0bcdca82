"""Files written by a live PyTorch, in both of its formats."""

import argparse
import collections
import json
import subprocess
import sys

import numpy as np
import pytest

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.weights import files

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def save(path, value, zipped, **options):
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return files.read(path)


def check(weights, tensors):
    assert weights.state_dict.keys() == tensors.keys()
    for key, tensor in tensors.items():
        array = weights.state_dict[key]
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch."), key
        assert array.shape == tuple(tensor.shape), key
        if array.dtype.name in NOT_IN_NUMPY:
            array, tensor = array.astype(np.float32), tensor.float()
        np.testing.assert_array_equal(array, tensor.detach().numpy(), err_msg=key)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_whole_training_checkpoint(tmp_path, zipped, protocol):
    """As DiffusionDepth's trainer saves with --save_full: optimiser, scheduler and Namespace."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ConvTranspose2d(4, 2, 2, 2)
    )
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 15])
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(
        max_depth=88.0,
        inference_steps=20,
        milestones=[1, 2],
        size=torch.Size([2, 3]),
        device=torch.device("cuda", 1),
        dtype=torch.float16,
        table=np.arange(3),
        best=np.float64(0.5),
        flags={"a", "b"},
        raw=b"\x00\xff",
        defaults=collections.defaultdict(list, x=[1]),
        nested=argparse.Namespace(warm_up=True),
    )
    value = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": args,
        "epoch": 20,
    }
    weights = save(tmp_path / "model_00020.pt", value, zipped, pickle_protocol=protocol)
    check(weights, net.state_dict())
    got = weights.metadata["args"]
    np.testing.assert_array_equal(got.pop("table"), [0, 1, 2])
    assert got == {
        "max_depth": 88.0,
        "inference_steps": 20,
        "milestones": [1, 2],
        "size": (2, 3),
        "device": "cuda:1",
        "dtype": "torch.float16",
        "best": 0.5,
        "flags": {"a", "b"},
        "raw": b"\x00\xff",
        "defaults": {"x": [1]},
        "nested": {"warm_up": True},
    }
    assert weights.metadata["epoch"] == 20
    assert weights.metadata["scheduler"]["last_epoch"] == 0
    assert "optimizer" not in weights.metadata


@FORMATS
def test_every_element_type(tmp_path, zipped):
    names = (
        "float64 float32 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 uint8 bool"
    )
    newer = "uint16 uint32 uint64 float8_e4m3fn float8_e5m2" if zipped else ""
    tensors = {}
    for name in f"{names} {newer}".split():
        dtype = getattr(torch, name)
        tensors[name] = torch.arange(-3.0, 3.0).abs().reshape(2, 3).to(dtype)
        tensors[f"{name} scalar"] = torch.tensor(1.0).to(dtype)
        tensors[f"{name} empty"] = torch.zeros(0, 3, dtype=dtype)
    weights = save(tmp_path / "a.pt", tensors, zipped)
    check(weights, tensors)


@FORMATS
def test_views_parameters_and_shared_storage(tmp_path, zipped):
    base = torch.arange(24.0).reshape(2, 3, 4)
    parameter = torch.nn.Parameter(torch.randn(3))
    marked = torch.nn.Parameter(torch.randn(3))
    marked._no_weight_decay = True
    tensors = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "row": base[1, 1],
        "strided": base[:, ::2, 1::2],
        "expanded": base[0, :1].expand(5, 4),
        "scalar": base[1, 2, 3],
        "channels_last": torch.randn(1, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": parameter,
        "marked": marked,
        "tied": parameter,
    }
    weights = save(tmp_path / "a.pt", tensors, zipped)
    check(weights, tensors)
    shared = weights.state_dict
    assert np.shares_memory(shared["base"], shared["transposed"])
    assert np.shares_memory(shared["parameter"], shared["tied"])


@FORMATS
def test_ordered_dicts_with_versions_and_data_parallel(tmp_path, zipped):
    net = torch.nn.DataParallel(torch.nn.Linear(2, 3))
    weights = save(tmp_path / "a.pt", net.state_dict(), zipped)  # carries `_metadata`
    check(weights, net.module.state_dict())


def test_a_pickled_module_is_refused(tmp_path):
    for zipped in (True, False):
        with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear"):
            save(tmp_path / "a.pt", torch.nn.Linear(2, 3), zipped)


def test_torchscript_is_refused(tmp_path):
    with pytest.warns(DeprecationWarning):
        torch.jit.script(torch.nn.Linear(2, 3)).save(str(tmp_path / "a.pt"))
    with pytest.raises(WeightsError, match="TorchScript"):
        files.read(tmp_path / "a.pt")


def test_a_truncated_file_is_refused(tmp_path):
    for zipped in (True, False):
        path = tmp_path / "a.pt"
        save(path, torch.nn.Linear(50, 50).state_dict(), zipped)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(WeightsError, match=r"truncated"):
            files.read(path)


def test_reading_imports_no_torch(tmp_path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "a.pt")
    code = (
        "import json, sys; from diffdepth_jax.weights import files; "
        f"print(json.dumps([*files.read({str(tmp_path / 'a.pt')!r}).state_dict, "
        "'torch' in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == ["weight", "bias", False]
