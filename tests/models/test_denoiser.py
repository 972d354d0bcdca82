"""What the denoiser's variants promise; other tests compare its values with recordings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.denoiser import Denoiser, DenoiserConfig, SelfAttention
from diffdepth_jax.ops.image import adaptive_average_pool, resize_bilinear

WIDTH, CHANNELS = 16, 4
CONFIGS = {
    "plain": DenoiserConfig(hidden_features=8),
    "fuse": DenoiserConfig(hidden_features=8, fuse=True),
    "paper": DenoiserConfig("paper", hidden_features=8, num_heads=2, attention_tokens=12),
}


def _inputs(size=(9, 13), coarse=(5, 7), batch=2):
    keys = jax.random.split(jax.random.key(0), 2)
    condition = jax.random.normal(keys[0], (batch, *coarse, WIDTH))
    latent = jax.random.normal(keys[1], (batch, *size, CHANNELS))
    return condition, latent, jnp.array([950, 3][:batch])


def _random_variables(module, *inputs):
    """Weights scaled like PyTorch's, but from NumPy: compiling an initialisation takes longer."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4.0
        return jnp.asarray(rng.standard_normal(leaf.shape) * fan_in**-0.5, jnp.float32)

    return jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), *inputs))


@functools.cache
def _build(name, dtype=jnp.float32):
    denoiser = Denoiser(CONFIGS[name], WIDTH, CHANNELS, dtype)
    return jax.jit(denoiser.apply), _random_variables(denoiser, *_inputs())


@pytest.mark.parametrize("name", CONFIGS)
def test_output_has_the_latents_shape_and_each_image_its_own_timestep(name):
    apply, variables = _build(name)
    condition, latent, timesteps = _inputs()
    output = apply(variables, condition, latent, timesteps)
    assert output.shape == latent.shape and output.dtype == jnp.float32
    other = apply(variables, condition, latent, jnp.array([950, 700]))
    np.testing.assert_array_equal(output[0], other[0])
    assert not np.allclose(output[1], other[1])


@pytest.mark.parametrize("name", ["plain", "fuse"])
def test_time_embedding_may_be_added_after_resizing(name):
    """The published order: the embedding first, then the sum is resized."""
    apply, variables = _build(name)
    condition, latent, timesteps = _inputs()
    table = variables["params"]["time_embedding"]
    without = {"params": variables["params"] | {"time_embedding": jnp.zeros_like(table)}}
    want = apply(without, condition + table[timesteps][:, None, None, :], latent, timesteps)
    got = apply(variables, condition, latent, timesteps)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_preparing_once_gives_the_same_result():
    apply, variables = _build("fuse")
    condition, latent, timesteps = _inputs()
    denoiser = Denoiser(CONFIGS["fuse"], WIDTH, CHANNELS)
    prepared = denoiser.apply(variables, condition, latent.shape[1:3], method="prepare")
    np.testing.assert_array_equal(prepared, resize_bilinear(condition, latent.shape[1:3]))
    denoise = jax.jit(functools.partial(denoiser.apply, method="denoise"))
    np.testing.assert_allclose(
        denoise(variables, prepared, latent, timesteps),
        apply(variables, condition, latent, timesteps),
        atol=1e-5,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_official_variant_never_predicts_negative_noise(name):
    apply, variables = _build(name)
    assert (float(apply(variables, *_inputs()).min()) < 0) == (name == "paper")


@pytest.mark.parametrize("name", CONFIGS)
def test_variants_differ_in_their_layers(name):
    _, variables = _build(name)
    assert ("fuse_conv1" in variables["params"]) == (name == "fuse")
    assert ("attention" in variables["params"]) == (name == "paper")


@pytest.mark.parametrize(("max_tokens", "size"), [(200, (9, 13)), (12, (3, 4))])
def test_attention_is_over_all_pixels_of_the_averaged_map(max_tokens, size):
    _, maps, _ = _inputs()
    heads, width = 2, CHANNELS // 2
    attention = SelfAttention(heads, max_tokens, 1, jnp.float32, "auto")
    variables = _random_variables(attention, maps)
    params = jax.tree.map(np.float64, variables["params"])

    mean, var = maps.mean((1, 2, 3), keepdims=True), maps.var((1, 2, 3), keepdims=True)
    norm = (maps - mean) / jnp.sqrt(var + 1e-5)
    norm = norm * params["norm"]["scale"].astype(np.float32)[None, None, None]
    norm = norm + params["norm"]["bias"].astype(np.float32)[None, None, None]
    tokens = np.float64(adaptive_average_pool(norm, size)).reshape(2, -1, CHANNELS)
    mixed = tokens @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    query, key, value = np.split(mixed, 3, axis=-1)
    attended = np.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        score = np.exp(query[..., part] @ key[..., part].transpose(0, 2, 1) / width**0.5)
        attended[..., part] = score / score.sum(-1, keepdims=True) @ value[..., part]
    attended = attended @ params["out"]["kernel"] + params["out"]["bias"]
    attended = jnp.asarray(attended.reshape(2, *size, CHANNELS), jnp.float32)
    want = maps + resize_bilinear(attended, maps.shape[1:3])
    np.testing.assert_allclose(jax.jit(attention.apply)(variables, maps), want, atol=1e-5)


def test_half_precision_stays_close_and_returns_single():
    apply, variables = _build("fuse")
    want = apply(variables, *_inputs())
    got = _build("fuse", jnp.bfloat16)[0](variables, *_inputs())
    assert got.dtype == jnp.float32
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)
    assert not np.array_equal(got, want)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_features": 6}, "must be divisible by num_groups 4"),
        ({"attention_tokens": 0}, "attention_tokens is 0"),
        ({"time_table": -1}, "time_table is -1"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DenoiserConfig(**fields)
