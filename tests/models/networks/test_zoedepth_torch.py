"""ZoeDepth against Hugging Face's transformers, with random weights."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import diffdepth_jax
from diffdepth_jax.models.networks import zoedepth
from diffdepth_jax.weights import rules

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

RANGE = {"n_bins": 6, "min_depth": 0.5, "max_depth": 30.0}
KINDS = {
    "softplus": {"num_attractors": [4, 3, 2, 1], "bin_configurations": [RANGE]},
    "normed": {
        "num_attractors": [4, 3, 2, 1],
        "bin_configurations": [RANGE],
        "bin_centers_type": "normed",
    },
    "domains": {
        "bin_configurations": [RANGE | {"name": "nyu"}, RANGE | {"name": "kitti"}],
        "num_patch_transformer_layers": 4,
        "patch_transformer_hidden_size": 128,
        "patch_transformer_intermediate_size": 40,
        "patch_transformer_num_attention_heads": 2,
    },
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# In pixels, for a grid of 4 x 4 patches of 16 pixels; sides are multiples of 32 here.
SIZES = [(64, 96), (96, 64), (32, 160)]


def their_model(kind: str, seed: int = 0, heads: float = 1.5):
    """A small ZoeDepth from transformers; `heads` scales the kernels of the metric heads."""
    backbone = transformers.BeitConfig(
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=64,
        layer_norm_eps=1e-6,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_indices=[1, 2, 4, 5],
    )
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=12,
        bottleneck_features=12,
        num_relative_features=6,
        bin_embedding_dim=10,
        **KINDS[kind],
    )
    model = transformers.ZoeDepthForDepthEstimation(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, array in model.named_parameters():
            draws = torch.randn(array.shape, generator=generator)
            if "position" in name or "token" in name:
                array.copy_(0.5 * draws)
            elif array.ndim > 1:
                scale = heads if name.startswith("metric_head") else 1.5
                array.copy_(scale * draws * array[0].numel() ** -0.5)
            elif name.endswith(("weight", "lambda_1", "lambda_2")):
                array.copy_(1 + 0.3 * draws)
            else:
                array.copy_(0.2 * draws)
    return model.eval()


def images(size, count=1):
    return np.random.default_rng(1).standard_normal((count, *size, 3)).astype(np.float32)


def theirs(model, image):
    with torch.no_grad():
        result = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth
    return result.numpy()[..., None]


def error(ours, wanted) -> float:
    wanted = np.asarray(wanted, np.float64)
    assert np.shape(ours) == wanted.shape
    return float(np.linalg.norm(np.asarray(ours) - wanted) / np.linalg.norm(wanted))


@every_kind
def test_a_transformers_directory_gives_the_same_depth(kind, tmp_path):
    model = their_model(kind)
    model.save_pretrained(tmp_path)
    ours = diffdepth_jax.load(tmp_path)
    normed = kind == "normed"
    assert ours.config.heads.bins == ("normed" if normed else "softplus")
    assert ours.config.heads.domains == (("nyu", "kitti") if kind == "domains" else ())
    assert ours.config.depth_range == ((0.5, 30.0) if normed else None)
    for size in SIZES if kind == "softplus" else SIZES[:1]:
        image = images(size, 2)
        wanted = theirs(model, image)
        assert wanted.std() > 0.02 * wanted.mean()
        got = jax.jit(ours.model.apply)(ours.variables, jnp.asarray(image))
        assert error(got, wanted) <= 1e-5, size


def test_domains_are_chosen_as_in_transformers(tmp_path):
    """Also with the domains in another order."""
    model, image = their_model("domains"), images((32, 64), 3)
    for order in (1, -1):
        model.config.bin_configurations = model.config.bin_configurations[::order]
        model.metric_head.bin_configurations = model.config.bin_configurations
        for sign in (1, -1):
            with torch.no_grad():
                for array in model.metric_head.mlp_classifier.linear2.parameters():
                    array *= sign
            path = tmp_path / f"{order}{sign}"
            model.save_pretrained(path)
            ours = diffdepth_jax.load(path)
            got = jax.jit(ours.model.apply)(ours.variables, jnp.asarray(image))
            assert error(got, theirs(model, image)) <= 1e-5, (order, sign)


@pytest.mark.parametrize("kind", ["softplus", "domains"])
def test_predict_equals_processor_model_and_post_processing(kind, tmp_path, monkeypatch):
    model = their_model(kind)
    model.save_pretrained(tmp_path)
    ours = diffdepth_jax.load(tmp_path, input_size=(64, 96))
    described = zoedepth.TRANSFORMERS.preprocessor(ours.config)
    assert described.pop("image_processor_type") == "ZoeDepthImageProcessor"
    module = transformers.models.zoedepth.image_processing_pil_zoedepth
    processor = module.ZoeDepthImageProcessorPil(**described)

    def resize(depth, size, interpolation, antialias):
        assert interpolation == "bicubic" and not antialias
        return torch.nn.functional.interpolate(depth[None], size, mode=interpolation)[0]

    # Stands in for torchvision, which need not be installed.
    modes = types.SimpleNamespace(BICUBIC="bicubic")
    functional = types.SimpleNamespace(resize=resize, InterpolationMode=modes)
    monkeypatch.setattr(module, "tvF", functional, raising=False)
    rng = np.random.default_rng(2)
    for size in ((47, 61), (120, 50)):
        picture = rng.integers(0, 256, (*size, 3), np.uint8)
        inputs = processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs, flipped = model(inputs), model(torch.flip(inputs, [3]))
        for other in (flipped, None):
            (wanted,) = processor.post_process_depth_estimation(
                outputs, [size], outputs_flipped=other
            )
            got = ours.predict(picture) if other else ours.predict(picture, flip_tta=False)
            assert error(got, wanted["predicted_depth"].numpy()) <= 1e-5, size


@every_kind
def test_weights_survive_a_round_trip_through_transformers(kind, tmp_path):
    model = their_model(kind)
    model.save_pretrained(tmp_path / "theirs")
    ours = diffdepth_jax.load(tmp_path / "theirs")
    layout = zoedepth.TRANSFORMERS
    table = layout.rules(ours.config)
    written = rules.export(ours.variables, table, rules.names(ours.variables, table))
    config = transformers.ZoeDepthConfig.from_dict(layout.describe(ours.config))
    config.save_pretrained(tmp_path)
    safetensors.numpy.save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    again, found = transformers.ZoeDepthForDepthEstimation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(found.values()), found
    image = images((32, 96))
    np.testing.assert_array_equal(theirs(again.eval(), image), theirs(model, image))
    assert diffdepth_jax.load(tmp_path).config == ours.config


def test_module_names_of_version_5_are_read_too():
    model = their_model("softplus")
    state_dict = {name: array.numpy() for name, array in model.state_dict().items()}
    assert any(name.endswith("attention.q_proj.weight") for name in state_dict)
    fields = {"core": {"encoder": {"taps": (0, 1, 3, 4), "layer_norm_eps": 1e-6}}}
    ours = diffdepth_jax.load(state_dict, **fields)
    image = images((32, 64))
    got = jax.jit(ours.model.apply)(ours.variables, jnp.asarray(image))
    assert error(got, theirs(model, image)) <= 1e-5


@every_kind
def test_gradients_of_every_parameter_agree(kind, tmp_path):
    # Attractors are so steep that with larger kernels float32 itself is off by a percent.
    model = their_model(kind, seed=1, heads=0.5)
    model.save_pretrained(tmp_path)
    ours = diffdepth_jax.load(tmp_path)
    image = images((32, 64))
    weights = np.random.default_rng(3).standard_normal((1, 32, 64, 1)).astype(np.float32)

    def scalar(params, image):
        return (ours.model.apply({"params": params}, image) * weights).sum()

    grads = jax.jit(jax.grad(scalar))(ours.variables["params"], jnp.asarray(image))
    prediction = model(torch.from_numpy(image.transpose(0, 3, 1, 2))).predicted_depth
    (prediction * torch.from_numpy(weights[..., 0])).sum().backward()
    wanted = {
        name: np.zeros(array.shape, np.float32) if array.grad is None else array.grad.numpy()
        for name, array in model.named_parameters()
    }
    table = zoedepth.TRANSFORMERS.rules(ours.config)
    wanted = rules.convert(wanted, table, ours.variables)["params"]

    def disagreement(ours, theirs):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        return np.abs(ours).max() if not theirs.any() else error(ours, theirs)

    errors = jax.tree.map(disagreement, grads, wanted)
    assert max(jax.tree.leaves(errors)) <= 1e-3, errors


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("readout_type", "ignore"),
        ("attractor_kind", "sum"),
        ("bin_centers_type", "hybrid1"),
        ("bin_configurations", [3]),
        ("min_temp", "cold"),
    ],
)
def test_an_unsupported_config_json_is_refused(entry, value):
    model = their_model("softplus")
    state_dict = {name: tuple(array.shape) for name, array in model.state_dict().items()}
    content = model.config.to_dict() | {entry: value}
    with pytest.raises(ValueError, match=entry):
        zoedepth.TRANSFORMERS.infer(state_dict, content)
