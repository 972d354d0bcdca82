"""Layers against literal loops and formulas in NumPy float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffdepth_jax.models import layers
from diffdepth_jax.weights import rules


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlate(inputs, kernel, stride, padding, groups):
    """Convolution by its definition."""
    size, _, fan_in, features = kernel.shape
    padded = np.pad(inputs.astype(np.float64), ((0, 0), *padding, (0, 0)))
    rows, columns = ((side - size) // stride + 1 for side in padded.shape[1:3])
    outputs = np.zeros((len(inputs), rows, columns, features))
    for row, column, feature in np.ndindex(rows, columns, features):
        first = feature // (features // groups) * fan_in
        y, x = row * stride, column * stride
        window = padded[:, y : y + size, x : x + size, first : first + fan_in]
        outputs[:, row, column, feature] = (window * kernel[None, ..., feature]).sum((1, 2, 3))
    return outputs


@pytest.mark.parametrize(
    ("size", "stride", "padding", "groups", "channels", "features"),
    [
        (3, 1, None, 1, 2, 5),
        (3, 2, None, 1, 2, 4),
        (4, 4, 0, 1, 3, 4),
        (1, 1, None, 1, 3, 4),
        (3, 1, None, 2, 4, 6),
        (3, 2, None, 4, 4, 4),  # depthwise
        (7, 1, None, 4, 4, 4),
        (3, 1, 0, 4, 4, 4),
    ],
)
def test_conv(size, stride, padding, groups, channels, features):
    conv = layers.Conv(features, size, stride, padding, groups)
    inputs, bias = normal(2, 8, 11, channels), normal(features)
    kernel = normal(size, size, channels // groups, features)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    border = size // 2 if padding is None else padding
    borders = ((border, border), (border, border))
    expected = correlate(inputs, kernel, stride, borders, groups) + bias[None, None, None]
    np.testing.assert_allclose(
        conv.apply({"params": params}, jnp.asarray(inputs)), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("size", "stride", "groups", "borders"),
    [
        (3, 1, 1, ((1, 1), (1, 1))),
        (3, 2, 1, ((0, 1), (1, 1))),
        (3, 2, 4, ((0, 1), (1, 1))),
        (5, 2, 4, ((1, 2), (2, 2))),
        (2, 3, 1, ((0, 0), (0, 0))),  # the stride skips the rest
    ],
)
def test_same_padding_matches_tensorflow(size, stride, groups, borders):
    conv = layers.Conv(8, size, stride, "same", groups, use_bias=False)
    inputs, kernel = normal(2, 8, 11, 4), normal(size, size, 4 // groups, 8)
    params = {"kernel": jnp.asarray(kernel)}
    found = conv.apply({"params": params}, jnp.asarray(inputs))
    assert found.shape[1:3] == (-(-8 // stride), -(-11 // stride))
    np.testing.assert_allclose(found, correlate(inputs, kernel, stride, borders, groups), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "features", "groups", "stride"),
    [(64, 64, 8, 1), (64, 32, 8, 2), (96, 96, 2, 1), (24, 12, 6, 1)],
)
def test_grouped_equals_the_convolution_in_value_and_gradient(channels, features, groups, stride):
    inputs = jnp.asarray(normal(2, 6, 7, channels))
    kernel = jnp.asarray(normal(3, 3, channels // groups, features, seed=1)) / channels
    arguments = (stride, ((1, 1), (1, 1)), groups)

    def grouped(inputs, kernel):
        return layers._grouped(inputs, kernel, *arguments, "auto")

    def convolution(inputs, kernel):
        return layers._xla_convolution(inputs, kernel, *arguments)

    np.testing.assert_allclose(
        grouped(inputs, kernel), convolution(inputs, kernel), rtol=1e-5, atol=1e-5
    )

    def gradient(function):
        return jax.grad(lambda *operands: jnp.sin(function(*operands)).sum(), (0, 1))

    found, expected = gradient(grouped)(inputs, kernel), gradient(convolution)(inputs, kernel)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_depthwise_equals_the_convolution_in_value_and_gradient(size, stride):
    inputs, kernel = jnp.asarray(normal(2, 6, 7, 3)), jnp.asarray(normal(size, size, 1, 3, seed=1))
    arguments = (stride, ((size // 2,) * 2,) * 2)
    np.testing.assert_allclose(
        layers._depthwise(inputs, kernel, *arguments),
        layers._xla_convolution(inputs, kernel, *arguments, 3),
        atol=1e-5,
    )

    def energy(function):
        return lambda *operands: jnp.sin(function(*operands, *arguments)).sum()

    found = jax.grad(energy(layers._depthwise), (0, 1))(inputs, kernel)
    taps = jax.grad(energy(layers._sum_of_taps), (0, 1))(inputs, kernel)
    for one, other in zip(found, taps, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "use_bias"),
    [(2, 2, 0, False), (4, 2, 1, True), (3, 2, 1, True), (3, 3, 0, True), (3, 1, 1, False)],
)
def test_conv_transpose_scatters_as_in_pytorch(size, stride, padding, use_bias):
    channels, features, height, width = 3, 4, 4, 5
    inputs, weight = normal(2, height, width, channels), normal(channels, features, size, size)
    bias = normal(features, seed=2) * use_bias
    grown = np.zeros((2, (height - 1) * stride + size, (width - 1) * stride + size, features))
    for row, column, y, x in itertools.product(
        range(height), range(width), range(size), range(size)
    ):
        grown[:, row * stride + y, column * stride + x] += (
            inputs[:, row, column].astype(np.float64) @ weight[:, :, y, x]
        )
    last = -padding if padding else None
    expected = grown[:, padding:last, padding:last] + bias[None, None, None]
    module = layers.ConvTranspose(features, size, stride, padding, use_bias)
    params = {"kernel": jnp.asarray(rules.conv_transpose.forward(weight).copy())}
    params |= {"bias": jnp.asarray(bias)} if use_bias else {}
    found = module.apply({"params": params}, jnp.asarray(inputs))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_linear():
    inputs, kernel, bias = normal(2, 3, 4), normal(4, 5), normal(5)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    expected = inputs.astype(np.float64) @ kernel + bias
    found = layers.Linear(5).apply({"params": params}, jnp.asarray(inputs))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "fan_in"),
    [
        (layers.Conv(64, 3), 9 * 32),
        (layers.Conv(32, 5, groups=32), 25),
        (layers.Conv(64, 3, groups=2), 9 * 16),
        (layers.Linear(64), 32),
        (layers.ConvTranspose(64, 4, 2, 1), 16 * 64),  # from the weight's second axis
    ],
)
def test_initialisation_is_pytorchs_default(module, fan_in):
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))["params"]
    bound = fan_in**-0.5
    for values in (params["kernel"], params["bias"]):
        assert bound * 0.9 < jnp.abs(values).max() <= bound
    deviation = float(params["kernel"].std())
    assert deviation == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_batch_norm_in_training():
    # A mean far from zero: in float32 a one-pass variance would be lost to rounding.
    inputs = 1000 + normal(3, 4, 5, 2)
    norm = layers.BatchNorm(train=True)
    variables = norm.init(jax.random.key(0), jnp.asarray(inputs))
    assert float(variables["batch_stats"]["mean"].max()) == 0.0, (
        "initialisation must not count as a step"
    )
    variables["params"] = {"scale": jnp.asarray([2.0, 3.0]), "bias": jnp.asarray([0.5, -1.0])}
    outputs, updates = norm.apply(variables, jnp.asarray(inputs), mutable="batch_stats")

    values = inputs.astype(np.float64)
    mean, variance = values.mean((0, 1, 2)), values.var((0, 1, 2))
    scale, bias = np.array([2.0, 3.0]), np.array([0.5, -1.0])
    expected = (values - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(outputs, expected, atol=1e-3)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * mean, rtol=1e-6)
    unbiased = values.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)


def test_batch_norm_in_evaluation():
    inputs = normal(2, 3, 4, 2)
    mean, variance = np.array([0.3, -2.0]), np.array([0.5, 4.0])
    variables = {
        "params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "batch_stats": {"mean": jnp.asarray(mean), "var": jnp.asarray(variance)},
    }
    outputs = layers.BatchNorm(train=False).apply(variables, jnp.asarray(inputs))
    np.testing.assert_allclose(outputs, (inputs - mean) / np.sqrt(variance + 1e-5), atol=1e-6)


def test_batch_norm_keeps_half_precision_out_of_the_statistics():
    inputs = jnp.asarray(100 + normal(4, 16, 16, 3), jnp.bfloat16)
    norm = layers.BatchNorm(train=True)
    outputs, updates = norm.apply(
        norm.init(jax.random.key(0), inputs), inputs, mutable="batch_stats"
    )
    assert outputs.dtype == jnp.bfloat16
    mean = np.asarray(inputs, np.float64).mean((0, 1, 2))
    assert updates["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)


def test_batch_norm_sees_the_whole_sharded_batch():
    inputs = np.concatenate([normal(1, 4, 4, 2), 5 + normal(1, 4, 4, 2, seed=1)])
    norm = layers.BatchNorm(train=True)
    variables = norm.init(jax.random.key(0), jnp.asarray(inputs))
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    sharded = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("data")))
    apply = jax.jit(lambda variables, inputs: norm.apply(variables, inputs, mutable="batch_stats"))
    for one, whole in zip(
        jax.tree.leaves(apply(variables, sharded)),
        jax.tree.leaves(apply(variables, inputs)),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(one), np.asarray(whole), atol=1e-6)


def test_batch_norm_refuses_a_single_value():
    with pytest.raises(ValueError, match="at least two values per channel"):
        layers.BatchNorm(train=True).init(jax.random.key(0), jnp.zeros((1, 1, 1, 4)))


def test_group_norm():
    inputs = 50 + normal(2, 3, 5, 8)
    norm = layers.GroupNorm(4)
    params = {"scale": jnp.arange(1.0, 9.0), "bias": jnp.arange(8.0)}
    groups = inputs.astype(np.float64).reshape(2, 3, 5, 4, 2)
    centred = groups - groups.mean((1, 2, 4), keepdims=True)
    expected = centred / np.sqrt(groups.var((1, 2, 4), keepdims=True) + 1e-5)
    expected = expected.reshape(inputs.shape) * np.arange(1, 9) + np.arange(8)
    found = norm.apply({"params": params}, jnp.asarray(inputs))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(ValueError, match="8 channels cannot be divided into 3"):
        layers.GroupNorm(3).init(jax.random.key(0), jnp.asarray(inputs))


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_layer_norm(eps):
    inputs = 1e-3 * normal(2, 3, 6)
    params = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}
    values = inputs.astype(np.float64)
    centred = values - values.mean(-1, keepdims=True)
    expected = centred / np.sqrt(values.var(-1, keepdims=True) + eps)
    expected = expected * np.arange(1, 7) + np.arange(6)
    found = layers.LayerNorm(eps).apply({"params": params}, jnp.asarray(inputs))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    inputs = jnp.ones((4000, 2, 3))
    drop = layers.DropPath(0.25)
    outputs = np.asarray(drop.apply({}, inputs, True, rngs={"drop_path": jax.random.key(0)}))
    assert (outputs == outputs[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(outputs), [0, 1 / 0.75], rtol=1e-6)
    assert outputs.mean() == pytest.approx(1, abs=0.03)
    assert drop.apply({}, inputs, False) is inputs
    assert layers.DropPath(0.0).apply({}, inputs, True) is inputs


def test_drop_path_rates_rise_evenly():
    rates = layers.drop_path_rates(0.3, (1, 2, 1))
    assert [len(stage) for stage in rates] == [1, 2, 1]
    np.testing.assert_allclose(sum(rates, ()), [0, 0.1, 0.2, 0.3])


def test_gelu_is_exact():
    values = np.linspace(-4, 4, 33)
    expected = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in values]
    np.testing.assert_allclose(layers.gelu(jnp.asarray(values)), expected, atol=1e-6)
