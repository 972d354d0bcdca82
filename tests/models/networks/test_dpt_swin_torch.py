"""DPT on Swin V2 against transformers, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import diffdepth_jax
from diffdepth_jax.models.networks import dpt
from diffdepth_jax.weights import rules

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model():
    """A small DPT from transformers for images of 96 pixels; its last stage is one window of 3."""
    backbone = transformers.Swinv2Config(
        image_size=96,
        embed_dim=8,
        depths=[2, 1, 1, 2],
        num_heads=[2, 2, 4, 4],
        window_size=4,
        mlp_ratio=2.0,
        pretrained_window_sizes=[3, 3, 3, 2],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.DPTConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 16, 32, 64], fusion_hidden_size=12
    )
    model = transformers.DPTForDepthEstimation(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in model.named_parameters():
            draws = torch.randn(array.shape, generator=generator)
            if "logit_scale" in name:
                array.copy_(2 + 0.5 * draws)
            elif array.ndim > 1:
                array.copy_(draws * array[0].numel() ** -0.5)
            elif name.endswith("weight"):
                array.copy_(1 + 0.3 * draws)
            else:
                array.copy_(0.2 * draws)
        model.head.head[4].bias.fill_(0.5)  # a few pixels are clipped at 0
    return model


@pytest.fixture
def ours(model, tmp_path):
    model.save_pretrained(tmp_path)
    return diffdepth_jax.load(tmp_path)


def error(found, wanted) -> float:
    wanted = np.asarray(wanted, np.float64)
    assert np.shape(found) == wanted.shape
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


def inputs(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 96, 96, 3)).astype(np.float32)


def test_a_transformers_directory_gives_the_same_disparity(model, ours):
    encoder = ours.config.encoder
    assert (encoder.window_size, encoder.image_size) == (4, 96)
    assert encoder.pretraining_windows == (3, 3, 3, 2)
    assert ours.config.implementation == "transformers" and ours.config.input_spec.size == (96, 96)
    image = inputs()
    with torch.no_grad():
        wanted = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth.numpy()
    assert 0.2 < (wanted > 0).mean() < 1 and wanted.std() > 0.05
    found = jax.jit(ours.model.apply)(ours.variables, image)
    assert error(found[..., 0], wanted) <= 1e-5


def test_predict_equals_processor_model_and_post_processing(model, ours):
    described = dpt.TRANSFORMERS.preprocessor(ours.config)
    described.pop("image_processor_type")
    processor = transformers.models.dpt.image_processing_pil_dpt.DPTImageProcessorPil(**described)
    picture = np.random.default_rng(2).integers(0, 256, (83, 131, 3), np.uint8)
    batch = processor(images=picture, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 96, 96)
    with torch.no_grad():
        outputs = model(**batch)
    (wanted,) = processor.post_process_depth_estimation(outputs, [(83, 131)])
    assert error(ours.predict(picture), wanted["predicted_depth"].numpy()) <= 1e-5


def test_weights_survive_a_round_trip_through_transformers(model, ours, tmp_path):
    table = dpt.TRANSFORMERS.rules(ours.config)
    written = rules.export(ours.variables, table, rules.names(ours.variables, table))
    fresh = transformers.DPTForDepthEstimation(
        transformers.DPTConfig.from_dict(dpt.TRANSFORMERS.describe(ours.config))
    ).eval()
    fresh.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in written.items()})
    image = torch.from_numpy(inputs(1).transpose(0, 3, 1, 2))
    with torch.no_grad():
        np.testing.assert_array_equal(fresh(image).predicted_depth, model(image).predicted_depth)
    # In MiDaS's names, complete for strict loading, and back from the file alone.
    theirs = dpt.rules(ours.config)
    published = rules.export(ours.variables, theirs, rules.names(ours.variables, theirs))
    assert published["pretrained.model.layers.0.blocks.1.attn_mask"].shape == (36, 16, 16)
    assert published["pretrained.model.head.weight"].shape == (1000, 64)
    path = tmp_path / "published.safetensors"
    safetensors.numpy.save_file(published, path)
    again = diffdepth_jax.load(
        path,
        implementation="transformers",
        encoder={"pretraining_windows": (3, 3, 3, 2)},
    )
    assert again.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, again.variables, ours.variables)


def test_gradients(model, ours):
    image = inputs(2)[:1]
    model.zero_grad()
    predicted = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth
    torch.sin(predicted).sum().backward()
    shapes = jax.eval_shape(ours.model.init_variables, jax.random.key(0))
    gradients = {
        name: np.zeros(array.shape, np.float32) if array.grad is None else array.grad.numpy()
        for name, array in model.named_parameters()
    }
    wanted = rules.convert(gradients, dpt.TRANSFORMERS.rules(ours.config), shapes)

    @jax.jit
    @jax.grad
    def gradient(variables):
        return jnp.sin(ours.model.apply(variables, jnp.asarray(image))).sum()

    found = gradient(dict(ours.variables))
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        assert error(one, other) <= 1e-3, jax.tree_util.keystr(path)
    model.zero_grad()
