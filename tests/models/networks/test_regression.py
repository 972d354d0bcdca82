"""The regression control against the parts that it shares with the method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.codec import Codec, CodecConfig
from diffdepth_jax.models.encoders import resnet
from diffdepth_jax.models.layers import Conv, GroupNorm
from diffdepth_jax.models.necks import Neck, NeckConfig
from diffdepth_jax.models.networks import diffusion_depth, regression
from diffdepth_jax.models.networks.regression import Config
from diffdepth_jax.ops.image import resize_bilinear

TINY = Config(
    encoder=resnet.Config(depths=(1, 1), widths=(4, 8)),
    neck=NeckConfig(8),
    codec=CodecConfig(factor=1, latent_channels=4),  # a latent twice the size of the condition
    hidden_features=8,
)


def _variables(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.5, 0.9, leaf.shape) ** 2, jnp.float32), shapes
    )


def test_depth_is_decoded_from_two_convolutions_of_the_condition():
    model = regression.build(TINY)
    variables = _variables(model)
    image = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))

    def part(name, module, *inputs):
        collections = {kind: tree[name] for kind, tree in variables.items() if name in tree}
        method = "decode" if name == "codec" else None
        return jax.jit(lambda *arrays: module.apply(collections, *arrays, method=method))(*inputs)

    condition = part("neck", Neck(TINY.neck), part("encoder", resnet.Encoder(TINY.encoder), image))
    assert condition.shape == (2, 4, 6, 8)
    project = variables["params"]["project"]
    hidden = Conv(8).apply({"params": project["conv0"]}, resize_bilinear(condition, (8, 12)))
    hidden = jax.nn.relu(GroupNorm(4).apply({"params": project["norm"]}, hidden))
    latent = Conv(4).apply({"params": project["conv1"]}, hidden)
    want = part("codec", Codec(TINY.codec), latent)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, image), want, rtol=1e-4)


def test_it_has_the_methods_parts_without_the_denoising():
    for name, config in regression.VARIANTS.items():
        method = diffusion_depth.VARIANTS[name]
        assert (config.encoder, config.neck, config.codec) == (
            method.encoder,
            method.neck,
            method.codec,
        )
    config = regression.VARIANTS["res18"]
    ours, theirs = (
        jax.eval_shape(network.build(each).init_variables, jax.random.key(0))["params"]
        for network, each in (
            (regression, config),
            (diffusion_depth, diffusion_depth.VARIANTS["res18"]),
        )
    )
    assert ours.keys() == {"encoder", "neck", "project", "codec"}
    for part in ("encoder", "neck"):
        assert jax.tree.map(jnp.shape, ours[part]) == jax.tree.map(jnp.shape, theirs[part])
    assert ours["codec"].keys() == {"decoder"}  # the encoder would only see ground truth


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_features": 6}, "hidden_features 6 must be divisible by num_groups 4"),
        ({"hidden_features": 0}, "hidden_features 0"),
        ({"max_depth": 0.0}, r"max_depth is 0\.0"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(encoder=resnet.Config(), **fields)
