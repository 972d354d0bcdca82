"""DPT on Swin V2 and on Swin: the authors' recording, and what is specific to these encoders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import inference
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.models.encoders import swin, swin2
from diffdepth_jax.models.networks import dpt
from diffdepth_jax.weights import files, rules

SIZES = {"embed_dim": 8, "depths": (2, 1, 2, 1), "num_heads": (2, 2, 4, 4), "window_size": 4}
SMALL = {
    "swin2": swin2.Config(**SIZES, image_size=96, pretraining_windows=(3, 3, 3, 2)),
    "swin": swin.Config(**SIZES, image_size=128, output_norms=False),
}


def config_of(encoder: str) -> dpt.Config:
    return dpt.Config(
        encoder=SMALL[encoder],
        project_features=(None,) * 4,
        fused_features=8,
        output_features=4,
    )


def test_the_recorded_network_is_recognised_and_predicts_the_same(network_case, tmp_path):
    case = network_case("dpt_swin2_tiny_256")
    path = tmp_path / "dpt_swin2_tiny_256.safetensors"
    files.write_safetensors(path, case.state_dict)
    model = inference.load(path)
    assert model.config == dpt.VARIANTS["swin2_tiny_256"]
    image = jnp.asarray(case.arrays["image"])
    prediction, features = model.model.apply(model.variables, image, method=_with_features)
    assert case.error("prediction", prediction) <= 2e-6  # float32 against float64: 5e-7
    for index, each in enumerate(features):
        tokens = np.asarray(each).reshape(1, -1, each.shape[-1])
        cut = tokens[:, :: tokens.shape[1] // 16, :16]
        assert case.error(f"tap{index}", cut) <= 2e-6


def _with_features(model, image):
    return model(image), model.encoder(image)


@pytest.mark.parametrize("variant", [name for name in dpt.VARIANTS if "swin" in name])
def test_images_become_squares_of_the_fixed_size(variant):
    config, side = dpt.VARIANTS[variant], int(variant.split("_")[-1])
    assert config.input_spec.size == (side, side)
    assert config.input_spec.input_size(375, 1242) == (side, side)
    assert config.encoder.image_size == side and not config.encoder.output_norms
    assert config.encoder.windows(3) == (side // 32, 0)


@pytest.mark.parametrize("encoder", SMALL)
def test_the_authors_names_survive_a_round_trip(encoder, random_network, tmp_path):
    model = random_network(config_of(encoder))
    table = dpt.rules(model.config)
    state_dict = rules.export(model.variables, table, rules.names(model.variables, table))
    masks = {name for name in state_dict if name.endswith("attn_mask")}
    root = "pretrained.model.layers."
    assert masks == {f"{root}{stage}.blocks.1.attn_mask" for stage in (0, 2)}
    wanted = model.config
    if encoder == "swin2":  # which a bare state dict does not say
        wanted = dataclasses.replace(
            wanted, encoder=dataclasses.replace(wanted.encoder, pretraining_windows=())
        )
    again = inference.load(state_dict)
    assert again.config == wanted
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
    path = tmp_path / "model.safetensors"
    assert inference.export(model, path) == []
    assert inference.load(path).config == model.config
    # The index and the masks are computed, as newer versions of timm do not store them.
    stored = {
        name: array
        for name, array in state_dict.items()
        if not name.endswith(("attn_mask", "relative_position_index"))
    }
    if encoder == "swin":
        assert len(stored) < len(state_dict) - len(masks)
        again = inference.load(stored)
        assert again.config == model.config
        jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
    else:
        with pytest.raises(WeightsError, match=r"attn_mask.*no published Swin V2 has embed_dim 8"):
            inference.load(stored)


def test_other_window_sizes_predict_differently(random_network):
    model = random_network(config_of("swin2"))
    own = dataclasses.replace(model.config.encoder, pretraining_windows=())
    image = jnp.asarray(np.random.default_rng(0).standard_normal((1, 96, 96, 3)), jnp.float32)
    features = [
        jax.jit(swin2.Encoder(config).apply)(
            {"params": model.variables["params"]["encoder"]}, image
        )[-1]
        for config in (model.config.encoder, own)
    ]
    assert not np.allclose(*features, atol=1e-3)


def test_transformers_has_no_dpt_on_the_first_swin():
    config = config_of("swin")
    for ask in (dpt.TRANSFORMERS.describe, dpt.TRANSFORMERS.rules):
        with pytest.raises(ConfigError, match="'swin'"):
            ask(dataclasses.replace(config, output_features=32))
