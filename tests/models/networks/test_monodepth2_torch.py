"""md4all's and monodepth2's files as PyTorch writes them, and the decoder against PyTorch.

The encoders' tests compare the encoder with PyTorch; recordings cover the whole network.
"""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import inference
from diffdepth_jax.models.networks import monodepth2
from diffdepth_jax.weights import rules
from tests.models.networks.test_monodepth2 import SMALL, entries

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.torch


def tensors(model):
    return {name: torch.tensor(array) for name, array in entries(model).items()}


def convolved(weights, name, inputs, stride=1, padding=None):
    kernel = weights[f"{name}.weight"]
    padding = kernel.shape[-1] // 2 if padding is None else padding
    return functional.conv2d(inputs, kernel, weights.get(f"{name}.bias"), stride, padding)


def encoded(weights, image):
    def norm(name, inputs):
        statistics = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(inputs, *(weights[f"{name}.{each}"] for each in statistics))

    root = "encoder.encoder"
    hidden = functional.relu(norm(f"{root}.bn1", convolved(weights, f"{root}.conv1", image, 2)))
    maps = [hidden]
    hidden = functional.max_pool2d(hidden, 3, 2, 1)
    for stage in range(1, 5):
        at, inputs, stride = f"{root}.layer{stage}.0", hidden, 1 if stage == 1 else 2
        hidden = functional.relu(
            norm(f"{at}.bn1", convolved(weights, f"{at}.conv1", hidden, stride))
        )
        hidden = norm(f"{at}.bn2", convolved(weights, f"{at}.conv2", hidden))
        if f"{at}.downsample.0.weight" in weights:
            inputs = convolved(weights, f"{at}.downsample.0", inputs, stride)
            inputs = norm(f"{at}.downsample.1", inputs)
        hidden = functional.relu(hidden + inputs)
        maps.append(hidden)
    return maps


def depth(weights, image):
    """Depth in 0.1 to 80 m [b, 1, h, w] of a normalised image [b, 3, h, w]."""

    def reflected(name, inputs):
        padded = functional.pad(inputs, (1, 1, 1, 1), mode="reflect")
        return convolved(weights, f"decoder.decoder.{name}", padded, padding=0)

    maps = encoded(weights, image)
    hidden = maps[-1]
    for index, level in enumerate((4, 3, 2, 1, 0)):
        hidden = functional.elu(reflected(f"{2 * index}.conv.conv", hidden))
        hidden = functional.interpolate(hidden, scale_factor=2, mode="nearest")
        if level:
            hidden = torch.cat([hidden, maps[level - 1]], 1)
        hidden = functional.elu(reflected(f"{2 * index + 1}.conv.conv", hidden))
    disparity = torch.sigmoid(reflected("10.conv", hidden))
    return 1 / (1 / 80 + (1 / 0.1 - 1 / 80) * disparity)


def error(ours, theirs):
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def test_values_agree_at_other_sizes_and_in_batches(random_network):
    model = random_network(SMALL)
    for shape in ((2, 64, 96, 3), (1, 160, 64, 3)):
        image = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            wanted = depth(tensors(model), torch.tensor(image).permute(0, 3, 1, 2))
        found = jax.jit(model.model.apply)(model.variables, jnp.asarray(image))
        assert error(found, wanted.permute(0, 2, 3, 1).numpy()) <= 2e-6


def test_gradients_of_every_parameter_agree(random_network):
    model = random_network(SMALL, seed=1)
    rng = np.random.default_rng(2)
    image = rng.standard_normal((1, 64, 96, 3)).astype(np.float32)
    weight = rng.standard_normal((1, 64, 96, 1)).astype(np.float32)

    def loss(params):
        variables = {**model.variables, "params": params}
        return (weight * model.model.apply(variables, jnp.asarray(image))).sum()

    table = monodepth2.rules(SMALL)
    gradients = {"params": jax.jit(jax.grad(loss))(model.variables["params"])}
    found = rules.export(gradients, table, rules.names(gradients, table))
    weights = tensors(model)
    coarse = tuple(f"decoder.decoder.{index}." for index in (11, 12, 13))  # of the other scales
    trained = [name for name in found if ".fc." not in name and not name.startswith(coarse)]
    for name in trained:
        weights[name].requires_grad_()
    result = depth(weights, torch.tensor(image).permute(0, 3, 1, 2))
    (torch.tensor(weight).permute(0, 3, 1, 2) * result).sum().backward()
    assert len(trained) + 6 == len(jax.tree.leaves(gradients))
    for name in trained:
        assert error(found[name], weights[name].grad.numpy()) <= 1e-3, name
    assert not any(found[name].any() for name in found if name.startswith(coarse))


def test_a_lightning_file_with_the_authors_config_is_read(random_network, tmp_path, monkeypatch):
    """Its hyper-parameters have a class from the authors' package, `config.config`."""
    module = types.ModuleType("config.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "config.config"})
    monkeypatch.setitem(sys.modules, "config", types.ModuleType("config"))
    monkeypatch.setitem(sys.modules, "config.config", module)
    config = module.CfgNode(MODEL=module.CfgNode(DEPTH=module.CfgNode(MAX_DEPTH=80.0)))
    config.__dict__["__immutable__"] = False
    model = random_network(SMALL)
    weights = {f"depth_model.{name}": array for name, array in tensors(model).items()}
    weights["pose_model.net.0.weight"] = torch.zeros(3)
    path = tmp_path / "md4allDDa_robotcar.ckpt"
    torch.save(
        {
            "epoch": 3,
            "pytorch-lightning_version": "1.9.0",
            "state_dict": weights,
            "callbacks": {
                "ModelCheckpoint{'mode': 'min'}": {"best_k_models": {"a": torch.ones(())}}
            },
            "hyper_parameters": {"cfg": config, "is_train": True},
        },
        path,
    )
    again = inference.load(path)
    jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(model.variables))
    assert again.config == dataclasses.replace(SMALL, input_size=(320, 544))


def test_the_two_files_of_monodepth2_are_read_as_one_network(random_network, tmp_path):
    model = random_network(SMALL)
    folder = tmp_path / "mono_640x192"
    folder.mkdir()
    parts = {"encoder": {"height": 96, "width": 64, "use_stereo": False}, "decoder": {}}
    for name, array in tensors(model).items():
        part, rest = name.split(".", 1)
        parts[part][rest] = array
    torch.save(parts["encoder"], folder / "encoder.pth")
    torch.save(parts["decoder"], folder / "depth.pth")
    torch.save({"net.weight": torch.zeros(2)}, folder / "pose.pth")
    again = inference.load(folder)
    jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(model.variables))
    assert again.config == dataclasses.replace(SMALL, input_size=(96, 64), max_depth=100.0)
