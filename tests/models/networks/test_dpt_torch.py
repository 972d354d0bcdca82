"""DPT on ViT, on the hybrid and on BEiT against transformers, with random weights."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import diffdepth_jax
from diffdepth_jax import inference
from diffdepth_jax.models.networks import dpt
from diffdepth_jax.weights import rules

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "layer_norm_eps": 1e-5}
# Except for BEiT, transformers takes only square images, and for the hybrid only one size.
IMAGES = {"vit": (160, 160), "hybrid": (96, 96), "beit": (96, 160)}


def small_config(kind: str):
    if kind == "beit":
        backbone = transformers.BeitConfig(
            **SIZES,
            image_size=96,
            use_relative_position_bias=True,
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
        )
        options = {"backbone_config": backbone, "neck_hidden_sizes": [8, 12, 16, 20]}
    else:
        options = {**SIZES, "image_size": 96, "backbone_out_indices": [0, 1, 2, 3]}
        options["neck_hidden_sizes"] = [8, 12, 16, 20]
    if kind == "hybrid":
        options |= {"is_hybrid": True, "backbone_featmap_shape": [1, 128, 6, 6]}
        options["neck_hidden_sizes"] = [32, 64, 16, 20]
        options["backbone_config"] = transformers.BitConfig(
            layer_type="bottleneck",
            global_padding="same",
            embedding_dynamic_padding=True,
            embedding_size=8,
            hidden_sizes=[32, 64, 128],
            depths=[1, 2, 1],
            num_groups=2,
            out_features=["stage1", "stage2", "stage3"],
        )
    return transformers.DPTConfig(**options, fusion_hidden_size=12)


@pytest.fixture(scope="module", params=IMAGES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    model = transformers.DPTForDepthEstimation(small_config(kind)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in model.named_parameters():
            draws = torch.randn(array.shape, generator=generator)
            if "position" in name or "token" in name:
                array.copy_(0.5 * draws)
            elif array.ndim > 1:
                array.copy_(draws * array[0].numel() ** -0.5)
            elif name.endswith("weight") or "lambda" in name:
                array.copy_(1 + 0.3 * draws)
            else:
                array.copy_(0.2 * draws)
        model.head.head[4].bias.fill_(2.5)  # a few pixels are clipped at 0
    return model


@pytest.fixture(scope="module")
def ours(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    model.save_pretrained(directory)
    return diffdepth_jax.load(directory)


def error(found, wanted) -> float:
    wanted = np.asarray(wanted, np.float64)
    assert np.shape(found) == wanted.shape
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


def images(size, count=2, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *size, 3)).astype(np.float32)


def theirs(model, image):
    with torch.no_grad():
        return model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth.numpy()


def test_a_transformers_directory_gives_the_same_disparity(kind, model, ours):
    encoder = ours.config.encoder
    assert encoder.name == {"hybrid": "hybrid_vit"}.get(kind, kind)
    assert encoder.layer_norm_eps == 1e-5 and encoder.num_heads == 4
    assert encoder.taps == ((2, 3) if kind == "hybrid" else (0, 1, 2, 3))
    assert ours.config.implementation == "transformers"
    image = images(IMAGES[kind])
    wanted = theirs(model, image)
    assert (wanted > 0).mean() > 0.2 and wanted.std() > 0.05 * wanted.mean()
    found = jax.jit(ours.model.apply)(ours.variables, image)
    assert error(found[..., 0], wanted) <= (1e-4 if kind == "hybrid" else 1e-5)


def test_predict_equals_processor_model_and_post_processing(model, ours):
    described = dpt.TRANSFORMERS.preprocessor(ours.config)
    described.pop("image_processor_type")
    processor = transformers.models.dpt.image_processing_pil_dpt.DPTImageProcessorPil(**described)
    picture = np.random.default_rng(2).integers(0, 256, (97, 143, 3), np.uint8)
    with torch.no_grad():
        outputs = model(**processor(images=picture, return_tensors="pt"))
    (wanted,) = processor.post_process_depth_estimation(outputs, [(97, 143)])
    hybrid = ours.config.encoder.name == "hybrid_vit"
    found = ours.predict(picture)
    assert error(found, wanted["predicted_depth"].numpy()) <= (1e-4 if hybrid else 1e-5)


def test_weights_survive_a_round_trip_through_transformers(kind, model, ours, tmp_path):
    assert inference.export(ours, tmp_path / "again", "transformers") == []
    again, found = transformers.DPTForDepthEstimation.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not any(found.values()), found
    image = images(IMAGES[kind], 1, seed=1)
    np.testing.assert_array_equal(theirs(again.eval(), image), theirs(model, image))
    # In MiDaS's names, complete for strict loading, and back.
    path = tmp_path / "published.safetensors"
    assert inference.export(ours, path) == []
    published = safetensors.numpy.load_file(path)
    if kind == "beit":
        name = "pretrained.model.blocks.3.attn.relative_position_index"
        assert published[name].shape == (37, 37)
    jax.tree.map(np.testing.assert_array_equal, diffdepth_jax.load(path).variables, ours.variables)


def test_gradients_of_every_parameter_agree(kind, model, ours, tmp_path):
    image = images(IMAGES[kind], 1, seed=2)
    model.zero_grad()
    predicted = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth
    torch.sin(predicted).sum().backward()
    gradients = copy.deepcopy(model)  # instead of the weights, to get the names used in files
    with torch.no_grad():
        for array, weight in zip(gradients.parameters(), model.parameters(), strict=True):
            array.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    gradients.save_pretrained(tmp_path)
    gradients = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    wanted = rules.convert(gradients, dpt.TRANSFORMERS.rules(ours.config), ours.variables)

    @jax.jit
    @jax.grad
    def gradient(variables):
        return jnp.sin(ours.model.apply(variables, jnp.asarray(image))).sum()

    found = gradient(dict(ours.variables))
    channels = ours.config.encoder.embed_dim
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        where = jax.tree_util.keystr(path)
        if "'qkv']['bias'" in where:
            # Biases of keys shift all logits equally: their gradient is just rounding.
            one, other = (np.delete(each, np.s_[channels : 2 * channels]) for each in (one, other))
        assert error(one, other) <= 1e-3, where
