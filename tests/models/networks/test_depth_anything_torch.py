"""Depth Anything and DINOv2 against Hugging Face's transformers, with random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffdepth_jax
from diffdepth_jax import inference
from diffdepth_jax.models.encoders import dinov2
from diffdepth_jax.models.networks import depth_anything
from diffdepth_jax.training import pretrained
from diffdepth_jax.weights import rules

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

# (height, width) in patches, for a grid of 5 x 5 position embeddings.
GRIDS = [(5, 8), (7, 5), (3, 11)]
KINDS = {
    "v1": {"out_indices": [2, 3, 4, 5]},
    "v2": {},
    "indoor": {"depth_estimation_type": "metric", "max_depth": 20},
    "gated": {"use_swiglu_ffn": True},
}


def their_model(kind: str):
    """A small Depth Anything from transformers."""
    options = dict(KINDS[kind])
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=70,
        out_indices=options.pop("out_indices", [1, 2, 3, 5]),
        use_swiglu_ffn=options.pop("use_swiglu_ffn", False),
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=12,
        head_hidden_size=8,
        **options,
    )
    model = randomised(transformers.DepthAnythingForDepthEstimation(config))
    with torch.no_grad():  # a few pixels are clipped at 0
        model.head.conv3.bias.fill_(0.0 if kind == "indoor" else 1.0)
    return model


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in model.state_dict().items():
            draws = torch.randn(array.shape, generator=generator)
            if "position" in name or "token" in name:
                array.copy_(0.5 * draws)
            elif array.ndim > 1:
                array.copy_(draws * array[0].numel() ** -0.5)
            elif name.endswith("weight"):
                array.copy_(1 + 0.3 * draws)
            else:
                array.copy_(0.2 * draws)
    return model.eval()


def images(size, count=2):
    return np.random.default_rng(1).standard_normal((count, *size, 3)).astype(np.float32)


def theirs(model, image):
    with torch.no_grad():
        result = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth
    return result.numpy()[..., None]


def applied(ours, image):
    return jax.jit(ours.model.apply)(ours.variables, image)


def error(ours, wanted) -> float:
    wanted = np.asarray(wanted, np.float64)
    assert np.shape(ours) == wanted.shape
    return float(np.linalg.norm(np.asarray(ours) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformers_directory_gives_the_same_depth(kind, tmp_path):
    model = their_model(kind)
    model.save_pretrained(tmp_path)
    ours = diffdepth_jax.load(tmp_path)
    assert ours.config.version == (1 if kind == "v1" else 2)
    assert ours.config.max_depth == (20.0 if kind == "indoor" else None)
    assert ours.config.encoder.gated == (kind == "gated")
    for grid in GRIDS if kind == "v2" else GRIDS[-1:]:
        image = images([14 * side for side in grid])
        wanted = theirs(model, image)
        assert wanted.std() > 0.05 * wanted.mean()
        assert error(applied(ours, image), wanted) <= 1e-5, grid


def test_the_authors_positions_differ_from_those_of_transformers(tmp_path):
    model = their_model("v2")
    model.save_pretrained(tmp_path)
    ours = diffdepth_jax.load(tmp_path, implementation="authors")
    image = images((70, 112))
    assert error(applied(ours, image), theirs(model, image)) > 1e-3
    image = images((70, 70))
    assert error(applied(ours, image), theirs(model, image)) <= 1e-5


@pytest.mark.parametrize("grid", [(37, 49), (37, 123), (49, 37), (5, 7), (41, 37)])
def test_positions_match_the_authors(grid):
    """Their code gives PyTorch a scale factor, even if one side does not change."""
    config = dinov2.Config(embed_dim=64, num_heads=1)
    table = np.random.default_rng(0).standard_normal((1370, 64)).astype(np.float32)
    fitted = dinov2._fitted(jnp.asarray(table), grid, config)
    square = torch.from_numpy(table[1:].reshape(1, 37, 37, 64).transpose(0, 3, 1, 2))
    factors = tuple((side + 0.1) / 37 for side in grid)
    wanted = torch.nn.functional.interpolate(square, scale_factor=factors, mode="bicubic")
    assert wanted.shape[2:] == grid
    wanted = wanted.numpy().transpose(0, 2, 3, 1).reshape(-1, 64)
    np.testing.assert_array_equal(fitted[0], table[0])
    assert error(fitted[1:], wanted) <= 3e-6


@pytest.mark.parametrize("kind", ["v1", "indoor"])
def test_predict_equals_processor_model_and_post_processing(kind, tmp_path):
    model = their_model(kind)
    model.save_pretrained(tmp_path)
    ours = diffdepth_jax.load(tmp_path)
    described = depth_anything.TRANSFORMERS.preprocessor(ours.config)
    described.pop("image_processor_type")
    processor = transformers.models.dpt.image_processing_pil_dpt.DPTImageProcessorPil(**described)
    rng = np.random.default_rng(2)
    for size in ((97, 143), (300, 120)):
        picture = rng.integers(0, 256, (*size, 3), np.uint8)
        with torch.no_grad():
            outputs = model(**processor(images=picture, return_tensors="pt"))
        (wanted,) = processor.post_process_depth_estimation(outputs, [size])
        wanted = wanted["predicted_depth"].numpy()
        if kind == "indoor":  # overshoot of resizing back is clipped
            wanted = wanted.clip(0, 20)
        assert error(ours.predict(picture), wanted) <= 1e-5, size


@pytest.mark.parametrize("kind", KINDS)
def test_weights_survive_a_round_trip_through_transformers(kind, tmp_path):
    model = their_model(kind)
    model.save_pretrained(tmp_path / "theirs")
    ours = diffdepth_jax.load(tmp_path / "theirs")
    assert inference.export(ours, tmp_path / "ours", layout="transformers") == []
    again, found = transformers.DepthAnythingForDepthEstimation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(found.values()), found
    image = images((42, 98))
    np.testing.assert_array_equal(theirs(again.eval(), image), theirs(model, image))
    assert diffdepth_jax.load(tmp_path / "ours").config == ours.config


def test_module_names_of_version_5_are_read_too():
    model = their_model("v2")
    state_dict = {name: array.numpy() for name, array in model.state_dict().items()}
    assert any(name.endswith("attention.q_proj.weight") for name in state_dict)
    fields = {"version": 2, "encoder": {"num_heads": 4}}
    ours = diffdepth_jax.load(state_dict, **fields)
    image = images((42, 98))
    assert error(applied(ours, image), theirs(model, image)) <= 1e-5


@pytest.mark.parametrize("kind", ["indoor", "gated"])
def test_gradients_of_every_parameter_agree(kind, tmp_path):
    model = their_model(kind)
    model.save_pretrained(tmp_path)
    ours = diffdepth_jax.load(tmp_path)
    image = images((42, 84), 1)
    inputs = jnp.asarray(image)
    weights = np.random.default_rng(3).standard_normal((1, 42, 84, 1)).astype(np.float32)

    def scalar(params):
        return (ours.model.apply({"params": params}, inputs) * weights).sum()

    grads = jax.jit(jax.grad(scalar))(ours.variables["params"])
    prediction = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth
    (prediction * torch.from_numpy(weights[..., 0])).sum().backward()
    wanted = {
        name: np.zeros(array.shape, np.float32) if array.grad is None else array.grad.numpy()
        for name, array in model.named_parameters()
    }
    for name in [name for name in wanted if "mlp.gate_proj" in name]:
        up, saved = name.replace("gate", "up"), name.replace("gate_proj", "weights_in")
        wanted[saved] = np.concatenate([wanted.pop(name), wanted.pop(up)])
    wanted = {name.replace("down_proj", "weights_out"): grad for name, grad in wanted.items()}
    table = depth_anything.TRANSFORMERS.rules(ours.config)
    wanted = rules.convert(wanted, table, ours.variables)["params"]
    errors = jax.tree.map(error, grads, wanted)
    # Biases of keys shift all logits equally: their gradient is just rounding.
    channels = ours.config.encoder.embed_dim
    for block in range(ours.config.encoder.depth):
        each = [tree["encoder"][f"block{block}"]["attention"]["qkv"] for tree in (grads, wanted)]
        kept = [np.delete(qkv["bias"], np.s_[channels : 2 * channels]) for qkv in each]
        errors["encoder"][f"block{block}"]["attention"]["qkv"]["bias"] = error(*kept)
    assert max(jax.tree.leaves(errors)) <= 1e-3, errors


@pytest.mark.parametrize("form", ["backbone", "saved", "modules"])
def test_dinov2_alone(form, tmp_path):
    config = their_model("v2").config.backbone_config
    config.reshape_hidden_states = True
    model = randomised(transformers.Dinov2Backbone(config))
    if form == "modules":
        path = tmp_path / "model.pth"
        torch.save(model.state_dict(), path)
    else:
        saved = model
        if form == "saved":
            saved = transformers.Dinov2Model(config)
            saved.load_state_dict(model.state_dict())
        saved.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    ours = dinov2.Config(
        embed_dim=32, depth=5, num_heads=4, taps=(0, 1, 2, 4), hidden_features=128, grid=5
    )
    ours = dataclasses.replace(ours, position_offset=dinov2.TRANSFORMERS_OFFSET)
    variables = pretrained.load_encoder(path, ours)
    image = images((70, 112))
    features = jax.jit(dinov2.Encoder(ours).apply)(variables, image)
    with torch.no_grad():
        wanted = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).feature_maps
    assert len(features) == len(wanted) == 4
    for one, other in zip(features, wanted, strict=True):
        assert error(one, other.numpy().transpose(0, 2, 3, 1)) <= 1e-5
