"""MiDaS v2.1 against PyTorch, written out here over a state dict: values, gradients, predictions.

None of the test packages contains this network. The recordings in `test_midas.py`, with which both
must agree, show that this is the authors' network.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.data.resampling import resize
from diffdepth_jax.models.networks import midas as ours
from diffdepth_jax.weights import rules
from tests.models.networks.test_midas import LARGE, SMALL

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.torch

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


class Weights:
    """Layers by the names of their weights."""

    def __init__(self, state_dict):
        self.of = state_dict

    def conv(self, name, inputs, stride=1, groups=1, same=False):
        kernel = self.of[f"{name}.weight"]
        size = kernel.shape[-1]
        padding = size // 2
        if same:
            totals = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in inputs.shape[2:]]
            rows, columns = ((total // 2, total - total // 2) for total in totals)
            inputs, padding = functional.pad(inputs, (*columns, *rows)), 0
        bias = self.of.get(f"{name}.bias")
        return functional.conv2d(inputs, kernel, bias, stride, padding, groups=groups)

    def norm(self, name, inputs, eps):
        entries = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(inputs, *(self.of[f"{name}.{e}"] for e in entries), eps=eps)

    def unit(self, name, inputs, rectified):
        hidden = self.conv(f"{name}.conv1", functional.relu(inputs))
        hidden = self.conv(f"{name}.conv2", functional.relu(hidden))
        return hidden + (functional.relu(inputs) if rectified else inputs)


def resnext(weights, image, groups):
    hidden = weights.conv("pretrained.layer1.0", image, 2)
    hidden = functional.relu(weights.norm("pretrained.layer1.1", hidden, 1e-5))
    hidden = functional.max_pool2d(hidden, 3, 2, 1)
    maps = []
    for stage, name in enumerate(("layer1.4", "layer2", "layer3", "layer4")):
        block = 0
        while f"pretrained.{name}.{block}.conv1.weight" in weights.of:
            at, stride = f"pretrained.{name}.{block}", 2 if stage and not block else 1
            inputs = hidden
            for layer, step, parts in ((1, 1, 1), (2, stride, groups), (3, 1, 1)):
                hidden = weights.conv(f"{at}.conv{layer}", hidden, step, parts)
                hidden = weights.norm(f"{at}.bn{layer}", hidden, 1e-5)
                hidden = functional.relu(hidden) if layer < 3 else hidden
            if f"{at}.downsample.0.weight" in weights.of:
                inputs = weights.conv(f"{at}.downsample.0", inputs, stride)
                inputs = weights.norm(f"{at}.downsample.1", inputs, 1e-5)
            hidden = functional.relu(hidden + inputs)
            block += 1
        maps.append(hidden)
    return maps


def efficientnet(weights, image):
    hidden = weights.conv("pretrained.layer1.0", image, 2, same=True)
    hidden = functional.relu6(weights.norm("pretrained.layer1.1", hidden, 1e-3))
    maps = []
    names = ("layer1.3", "layer1.4", "layer2.0", "layer3.0", "layer3.1", "layer4.0", "layer4.1")
    for stage, (name, step) in enumerate(zip(names, (1, 2, 2, 2, 1, 2, 1), strict=True)):
        block = 0
        while f"pretrained.{name}.{block}.conv_dw.weight" in weights.of:
            at, stride, inputs = f"pretrained.{name}.{block}", 1 if block else step, hidden
            layers = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
            if stage:
                layers = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
            for layer, norm in layers:
                deep = layer == "conv_dw"
                groups = hidden.shape[1] if deep else 1
                stepped = stride if deep else 1
                hidden = weights.conv(f"{at}.{layer}", hidden, stepped, groups, same=True)
                hidden = weights.norm(f"{at}.{norm}", hidden, 1e-3)
                hidden = hidden if (layer, norm) == layers[-1] else functional.relu6(hidden)
            hidden = hidden + inputs if hidden.shape == inputs.shape else hidden
            block += 1
        if name in ("layer1.4", "layer2.0", "layer3.1", "layer4.1"):
            maps.append(hidden)
    return maps


def midas(state_dict, image, groups):
    """Disparity [b, 1, h, w] of a normalised image [b, 3, h, w]; no `groups`: the small network."""
    weights, large = Weights(state_dict), groups is not None
    maps = resnext(weights, image, groups) if large else efficientnet(weights, image)
    fused = None
    for level in (4, 3, 2, 1):
        here = f"scratch.refinenet{level}"
        hidden = weights.conv(f"scratch.layer{level}_rn", maps[level - 1])
        if fused is not None:
            hidden = fused + weights.unit(f"{here}.resConfUnit1", hidden, large)
        hidden = weights.unit(f"{here}.resConfUnit2", hidden, large)
        hidden = functional.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=True)
        fused = hidden if large else weights.conv(f"{here}.out_conv", hidden)
    hidden = weights.conv("scratch.output_conv.0", fused)
    hidden = functional.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
    hidden = functional.relu(weights.conv("scratch.output_conv.2", hidden))
    return functional.relu(weights.conv("scratch.output_conv.4", hidden))


def tensors(model):
    """A model's entries under the authors' names."""
    table = ours.rules(model.config)
    found = rules.export(model.variables, table, rules.names(model.variables, table))
    return {name: torch.tensor(array) for name, array in found.items()}


def groups_of(config):
    return config.encoder.groups if config is LARGE else None


def prediction(model, image):
    """PyTorch's prediction for a normalised image [b, h, w, 3], NHWC as well."""
    inputs = torch.tensor(np.asarray(image)).permute(0, 3, 1, 2)
    with torch.no_grad():
        result = midas(tensors(model), inputs, groups_of(model.config))
    return result.permute(0, 2, 3, 1).numpy()


def error(ours, theirs):
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


both = pytest.mark.parametrize("config", [LARGE, SMALL], ids=["large", "small"])


@pytest.mark.parametrize(("name", "groups"), [("midas_v21_small", None), ("midas_v21", 32)])
def test_this_reimplementation_is_the_authors_network(name, groups, network_case):
    case = network_case(name)
    weights = {key: torch.tensor(array) for key, array in case.state_dict.items()}
    image = torch.tensor(case.arrays["image"].transpose(0, 3, 1, 2))
    with torch.no_grad():
        result = midas(weights, image, groups).permute(0, 2, 3, 1)
    assert case.error("prediction", result.numpy()) <= 2e-6


@both
def test_values_agree_at_other_sizes_and_in_batches(config, random_network):
    """As closely as float32 allows where few pixels are positive."""
    model = random_network(config)
    for shape in ((2, 64, 96, 3), (1, 160, 32, 3), (3, 32, 32, 3)):
        image = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        found = jax.jit(model.model.apply)(model.variables, image)
        assert error(found, prediction(model, image)) <= 5e-6


@both
def test_gradients_of_every_parameter_agree(config, random_network):
    model = random_network(config, seed=1)
    rng = np.random.default_rng(2)
    image = rng.standard_normal((1, 64, 96, 3)).astype(np.float32)
    weight = rng.standard_normal((1, 64, 96, 1)).astype(np.float32)

    def loss(params):
        variables = {**model.variables, "params": params}
        return (weight * model.model.apply(variables, jnp.asarray(image))).sum()

    entries = tensors(model)
    table = ours.rules(config)
    gradients = {"params": jax.jit(jax.grad(loss))(model.variables["params"])}
    found = rules.export(gradients, table, rules.names(gradients, table))

    trained = [name for name in found if "refinenet4.resConfUnit1" not in name]
    for name in trained:
        entries[name].requires_grad_()
    result = midas(entries, torch.tensor(image).permute(0, 3, 1, 2), groups_of(config))
    assert (result > 0).float().mean() > 0.2  # the last ReLU does not block everything
    (torch.tensor(weight).permute(0, 3, 1, 2) * result).sum().backward()
    assert len(trained) == len(jax.tree.leaves(gradients))
    for name in trained:
        assert error(found[name], entries[name].grad.numpy()) <= 1e-3, name


@both
def test_a_whole_prediction_equals_the_authors_script(config, random_network):
    model = random_network(config)
    image = np.random.default_rng(3).integers(0, 256, (57, 91, 3), np.uint8)
    size = model.input_spec.input_size(57, 91)
    inputs = (resize(image / 255, size, "bicubic") - MEAN) / STD
    disparity = prediction(model, inputs[None].astype(np.float32))
    back = functional.interpolate(
        torch.tensor(disparity).permute(0, 3, 1, 2),
        size=(57, 91),
        mode="bicubic",
        align_corners=False,
    )
    assert model.output == "relative_disparity"
    assert error(model.predict(image), back.squeeze().numpy()) <= 1e-5
