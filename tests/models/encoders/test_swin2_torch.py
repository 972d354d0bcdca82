"""Swin V2 against transformers, with random weights.

transformers subtracts the mask of a shift twice, so keys across the border get 200 less, not 100 as
in timm and Microsoft's code. It shows only if logits differ by about 100, with factors above 40.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.encoders import swin2
from diffdepth_jax.training import pretrained
from diffdepth_jax.weights.rules import convert, export, names

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

# Windows of 4 in the first two stages; the third stage's map is smaller, 3 x 3.
CONFIG = swin2.Config(
    embed_dim=8,
    depths=(2, 2, 2),
    num_heads=(2, 4, 4),
    window_size=4,
    image_size=48,
    mlp_ratio=2.0,
    pretraining_windows=(3, 0, 6),
)


def backbone(config):
    """transformers' backbone with random weights."""
    torch.manual_seed(0)
    settings = transformers.Swinv2Config(
        image_size=config.image_size,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        pretrained_window_sizes=list(config.pretraining_windows) or [0] * len(config.depths),
        out_features=[f"stage{stage + 1}" for stage in range(len(config.depths))],
    )
    model = transformers.AutoBackbone.from_config(settings).eval()
    with torch.no_grad():
        for name, array in model.named_parameters():
            draws = torch.randn(array.shape)
            if "logit_scale" in name:
                array.copy_(math.log(10.0) + torch.linspace(-1, 1, len(array))[:, None, None])
            elif array.ndim > 1:
                array.copy_(draws * array[0].numel() ** -0.5)
            else:
                array.copy_(0.5 * draws + (1 if name.endswith("weight") else 0))
    return model


@pytest.mark.parametrize("size", [(48, 48), (37, 66)])
def test_transformers_backbone(size, tmp_path):
    model = backbone(CONFIG)
    state_dict = {name: array.numpy() for name, array in model.state_dict().items()}
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted = model(image).feature_maps
    inputs = jnp.asarray(image.numpy().transpose(0, 2, 3, 1))
    encoder, table = swin2.Encoder(CONFIG), swin2.transformers_rules(CONFIG)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    variables = convert(state_dict, table, shapes)
    for ours, theirs in zip(jax.jit(encoder.apply)(variables, inputs), wanted, strict=True):
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        assert np.linalg.norm(ours - theirs) <= 2e-6 * np.linalg.norm(theirs)
    written = export(variables, table, names(variables, table))
    model.load_state_dict({name: torch.from_numpy(a) for name, a in written.items()})
    found = swin2.infer_transformers({name: array.shape for name, array in written.items()})
    undetermined = {
        name: getattr(CONFIG, name) for name in swin2.LAYOUTS["transformers"].undetermined
    }
    assert dataclasses.replace(found, **undetermined) == CONFIG
    path = tmp_path / "swin2.pt"
    torch.save({f"swinv2.{name}": array for name, array in model.state_dict().items()}, path)
    jax.tree.map(np.testing.assert_array_equal, pretrained.load_encoder(path, CONFIG), variables)


def test_gradients():
    config = dataclasses.replace(CONFIG, depths=(2, 1), num_heads=(2, 4), pretraining_windows=())
    model = backbone(config).double()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if "coords_table" in name:
                setattr(module, name, buffer.double())
    image = torch.randn(1, 3, 40, 48, dtype=torch.float64)
    sum(torch.sin(3 * feature).sum() for feature in model(image).feature_maps).backward()
    gradients = {name: array.grad.numpy() for name, array in model.named_parameters()}
    state_dict = {name: array.numpy() for name, array in model.float().state_dict().items()}
    inputs = jnp.asarray(image.numpy().transpose(0, 2, 3, 1), jnp.float32)
    encoder, table = swin2.Encoder(config), swin2.transformers_rules(config)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), inputs)

    @jax.jit
    @jax.grad
    def gradient(variables):
        features = encoder.apply(variables, inputs)
        return sum(jnp.sin(3 * feature).sum() for feature in features)

    found = gradient(convert(state_dict, table, shapes))
    wanted = convert(
        {name: array.astype(np.float32) for name, array in gradients.items()}, table, shapes
    )
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error <= 1e-3, (jax.tree_util.keystr(path), error)
