"""Everything that is compiled can be compiled for an NVIDIA GPU.

Lowering needs no GPU: functions are traced in the form that accelerators get and turned into
StableHLO for CUDA, which fails for an operation without a rule for it.
"""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax import registry
from diffdepth_jax.inference import model as model_file
from diffdepth_jax.inference import recalibration, sampling
from diffdepth_jax.models import layers
from diffdepth_jax.ops import attention, image, order_statistics, platform
from diffdepth_jax.training import experiment, loop, sharding
from tests.models.networks.small_configs import SMALL
from tests.models.networks.test_contract import inputs, small
from tests.training import tiny_parts

PACKAGE = Path(__file__).resolve().parents[1] / "diffdepth_jax"


def lowered_for_cuda(jitted, *arguments):
    """The StableHLO text of a jitted function; arguments may be shapes."""
    with platform.tracing_for("cuda"):
        exported = jax.export.export(jitted, platforms=["cuda"])(*arguments)
    assert exported.platforms == ("cuda",)
    return exported.mlir_module()


# ---- all jitted functions ------------------------------------------------------------------------

# Lowered below on their own, as they run, or by the named tests.
ALONE = {
    "ops/attention.py _head_by_head",
    "ops/image.py _taps",
    "ops/order_statistics.py _smallest",
    "models/layers.py _grouped",
    "models/layers.py _sum_of_taps",
    "inference/model.py _apply",
    "inference/sampling.py decode_trajectory",
    "inference/sampling.py _conditions",
    "inference/sampling.py _of_noise",
}
AS_THEY_RUN = {
    "inference/recalibration.py decoder_statistics",
    "training/sharding.py on_one_device",
    "training/step.py compiled",
    "training/step.py initial_state",
    "training/teacher.py __init__",
}
ELSEWHERE = {
    "inference/portable.py _difference": "runs on the CPU, to compare with ONNX Runtime",
    "inference/portable.py stablehlo": "tests/inference/test_portable.py",
    "training/sharding.py __init__": "reduces one number, only with several processes",
}


def jitted_functions():
    """Uses of `jax.jit` in the package: the file, and the outermost function around it."""

    def visit(node, owner):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Attribute) and ast.unparse(child) == "jax.jit":
                yield owner
            is_outermost = owner is None and isinstance(child, ast.FunctionDef)
            yield from visit(child, child.name if is_outermost else owner)

    return {
        f"{path.relative_to(PACKAGE).as_posix()} {owner}"
        for path in PACKAGE.rglob("*.py")
        for owner in visit(ast.parse(path.read_text()), None)
    }


def test_no_jitted_function_is_forgotten():
    assert jitted_functions() == ALONE | AS_THEY_RUN | ELSEWHERE.keys()


# ---- operations and layers -----------------------------------------------------------------------

MAP = jnp.ones((2, 8, 8, 6))
PADDED = ((1, 1), (1, 1))


@pytest.mark.parametrize(
    "jitted, arguments",
    [
        (attention._head_by_head, (jnp.ones((2, 1, 5, 4)),) * 3),
        (image._taps, (MAP, 1, image._Matrix(np.eye(8)))),
        (
            order_statistics._smallest,
            (MAP[..., :1], MAP[..., :1] > 0, jnp.zeros((2, 1, 1, 1), int)),
        ),
        (layers._grouped, (MAP, jnp.ones((3, 3, 2, 6)), 1, PADDED, 3, "auto")),
        (layers._sum_of_taps, (MAP, jnp.ones((3, 3, 1, 6)), 1, PADDED)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_operations(jitted, arguments):
    assert "stablehlo" in lowered_for_cuda(jitted, *arguments)


# ---- prediction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names("network"))
def test_predictions(name):
    _, model, variables = small(name)
    image, *noise = inputs(model)
    drawn = {"noise": noise[0], "key": jax.random.split(jax.random.key(0))} if noise else {}
    text = lowered_for_cuda(model_file._apply, model, variables, image, drawn, None, True)
    assert "stablehlo.convolution" in text


def test_samples():
    _, model, variables = small("diffusion_depth")
    image, noise = inputs(model)
    key = jax.random.key(0)
    trajectory = (model, variables, image[:1], noise[:1], key, None)
    conditions = jax.eval_shape(sampling._conditions, model, variables, image, True)
    keys = jax.random.split(key)
    of_noise = (model, variables, conditions, noise, keys, None, image.shape)
    assert "while" in lowered_for_cuda(sampling.decode_trajectory, *trajectory)
    assert "while" in lowered_for_cuda(sampling._conditions, model, variables, image, True)
    assert "while" in lowered_for_cuda(sampling._of_noise, *of_noise)


# ---- training ------------------------------------------------------------------------------------

# A network that the objective can train, if not the diffusion network.
TRAINED = {"pixel": "regression", "metric": "regression", "ssi": "dpt", "md4all": "monodepth2"}


@pytest.mark.parametrize("name", registry.names("objective"))
def test_gradients_of_objectives(name):
    _, model, variables = small(TRAINED.get(name, "diffusion_depth"), dtype=jnp.bfloat16)
    file = registry.module("objective", name)
    loss = file.build(file.Config(), model, 10)
    image = inputs(model)[0]
    depth = jnp.ones((*image.shape[:3], 1))
    batch = {"image": image, "depth": depth, "valid_mask": depth > 0}
    if name == "consistency_distillation":
        latent, timesteps = inputs(model)[1], jnp.array([10, 5])
        batch |= {"latent": latent, "next_latent": latent, "clean_latent": latent}
        batch |= {"timestep": timesteps, "next_timestep": timesteps - 1}

    @jax.jit
    def gradient(params, batch_stats, key):
        return jax.grad(loss, has_aux=True)(params, batch_stats, batch, key, jnp.int32(0))

    text = lowered_for_cuda(
        gradient, variables["params"], variables.get("batch_stats", {}), jax.random.key(0)
    )
    assert "stablehlo.convolution" in text and "bf16" in text


# Encoders that none of those networks uses.
ENCODERS = {
    "swin": {"embed_dim": 8, "depths": (1, 2), "num_heads": (2, 4), "window_size": 3},
    "swin2": {"embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}
    | {"output_norms": True},
    "mpvit": {"embed_dims": (16, 24), "num_layers": (1, 2), "num_paths": (1, 2)}
    | {"mlp_ratios": (2.0, 1.5)},
    "hybrid_vit": {"stem_features": 8, "depths": (1, 1, 1), "widths": (8, 8, 8), "num_groups": 2}
    | {"embed_dim": 8, "depth": 2, "num_heads": 2, "hidden_features": 8, "grid": 2, "taps": (0, 1)},
}


@pytest.mark.parametrize("name", registry.names("encoder"))
def test_gradients_of_encoders(name):
    if name not in ENCODERS:
        assert any(f"'name': '{name}'" in str(fields) for fields in SMALL.values())
        return
    file = registry.module("encoder", name)
    encoder = file.Encoder(file.Config(**ENCODERS[name]), dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), image)

    @jax.jit
    def gradient(params, others, image):
        def loss(params):
            features, _ = encoder.apply(
                {**others, "params": params},
                image,
                True,
                mutable=["batch_stats"],
                rngs={"drop_path": jax.random.key(0)},
            )
            return sum(each.astype(jnp.float32).mean() for each in features)

        return jax.grad(loss)(params)

    others = {kind: part for kind, part in variables.items() if kind != "params"}
    assert "bf16" in lowered_for_cuda(gradient, variables["params"], others, image)


# ---- functions created where they are called -----------------------------------------------------


def shapes_of(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )


@pytest.fixture
def lowered(monkeypatch):
    """Lowers for CUDA whatever is jitted from now on, on its first call; maps names to text.

    The training step runs under JAX's transfer guard and must donate its state. Recalibration is
    only lowered, not computed.
    """
    texts, jit = {}, jax.jit

    def recording(function, **options):
        jitted, name = jit(function, **options), function.__name__

        def call(*arguments):
            if name not in texts:
                texts[name] = lowered_for_cuda(jit(function, **options), *shapes_of(arguments))
            if name == "moments":
                shapes = jax.eval_shape(jitted, *arguments)
                return jax.tree.map(lambda leaf: np.full(leaf.shape, 2, leaf.dtype), shapes)
            if name != "train_step":
                return jitted(*arguments)
            placed = jax.device_put(arguments, options["in_shardings"])
            with jax.transfer_guard("disallow"):
                result = jitted(*placed)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed[0]))
            return result

        return call

    monkeypatch.setattr(jax, "jit", recording)
    return texts


def test_a_run_with_a_teacher_whose_step_transfers_nothing(lowered, tmp_path, monkeypatch):
    tiny_parts.register(monkeypatch.setitem)
    tiny = tiny_parts.EXPERIMENT | {"num_steps": 2, "ema_decay": 0.9}
    loop.train(experiment.from_mapping(tiny), tmp_path / "teacher")
    lowered.clear()
    source = tiny["data"]["train"]["source"] | {"pairs": True}
    data = tiny["data"] | {"train": tiny["data"]["train"] | {"source": source}}
    teacher = {"checkpoint": str(tmp_path / "teacher")}
    loop.train(experiment.from_mapping(tiny | {"data": data, "teacher": teacher}), tmp_path / "run")
    assert lowered.keys() == {"init", "train_step", "labels"}


def test_other_computations(lowered):
    _, model, variables = small("diffusion_depth")
    recalibration.decoder_statistics(model, variables, [np.zeros((16, 24, 3), np.float32)], 1)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    sharding.on_one_device({"bias": jnp.ones(3)}, mesh)
    assert lowered.keys() == {"moments", "<lambda>"}
