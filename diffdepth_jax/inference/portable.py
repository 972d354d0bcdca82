"""Exports a model as one file that runs without this package: StableHLO or ONNX.

The file contains weights and program. It takes uint8 RGB images at the network's input size and
returns what `DepthModel.predict` returns for them; if the network starts from noise, the noise is
part of the program.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, UInt8

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference.model import DepthModel, check_seed
from diffdepth_jax.models.networks.network import Denoises, JudgesBatch
from diffdepth_jax.ops import platform, random

# (variables, image uint8 [b, h, w, 3]) -> float32 [b, h, w]
_Program = Callable[[Mapping[str, Any], UInt8[Array, "b h w 3"]], Float[Array, "b h w"]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that are fixed at export.

    Attributes:
        size: (height, width) of the network's input in pixels, multiples of its
            `input_spec.multiple`. The caller resizes or pads images, and reverses this for the
            result.
        batch_size: images per call; None for any number.
        num_inference_steps: denoising steps; None for the checkpoint's own number.
        seed: seed of the noise, which is the same for every image in a call.
    """

    size: tuple[int, int]
    batch_size: int | None = None
    num_inference_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ConfigError(f"size is {self.size}; it must be (height, width) in pixels")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")
        check_seed(self.seed)


def stablehlo(
    model: DepthModel, options: Options, platforms: Sequence[str] = ("cpu", "cuda")
) -> jax_export.Exported:
    """The model as StableHLO, lowered for each platform; the platforms need not be present.

    Args:
        model: a network with its weights, which become constants in the program.
        options: see `Options`.
        platforms: names from `ops.platform.PLATFORMS`. Each uses the operations that are fast on
            it.

    Returns:
        A function uint8 [b, h, w, 3] -> float32 [b, h, w], in metres or relative disparity; run it
        with its method `call`.

    Raises:
        ConfigError: for options that the network does not support, or an unknown platform.
    """
    unknown = set(platforms) - set(platform.PLATFORMS)
    if unknown or not platforms:
        raise ConfigError(
            f"platforms are {', '.join(platforms) or 'none'}; they must be among "
            f"{', '.join(platform.PLATFORMS)}"
        )
    program, variables = _program(model, options), model.variables_at(options.num_inference_steps)
    forms = {name: _traced_for(name, program) for name in platforms}

    @jax.jit
    def predict(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        # The platforms' forms share the weights. The barrier keeps XLA from slowly precomputing
        # what only depends on weights.
        return jax.lax.platform_dependent(jax.lax.optimization_barrier(variables), image, **forms)

    return jax_export.export(predict, platforms=platforms)(_image(options))


def serialized(exported: jax_export.Exported) -> bytes:
    """Serialises a program for `jax.export.deserialize`.

    Raises:
        ConfigError: if the package `flatbuffers` is missing.
    """
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ConfigError(
            "writing StableHLO needs the package flatbuffers: pip install flatbuffers"
        ) from error


def _image(options: Options) -> jax.ShapeDtypeStruct:
    batch: Any = options.batch_size
    if batch is None:
        (batch,) = jax_export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *options.size, 3), jnp.uint8)


def _traced_for(name: str, program: _Program) -> _Program:
    @functools.wraps(program)
    def traced(*arguments: Any) -> Any:
        with platform.tracing_for(name):
            return program(*arguments)

    return traced


def _program(model: DepthModel, options: Options) -> _Program:
    """`DepthModel.predict` entirely in JAX.

    Raises:
        ConfigError: for options that the network does not support.
    """
    spec, network = model.input_spec, model.config.name
    height, width = options.size
    if any(side % spec.multiple for side in options.size):
        near = spec.nearest(height, width)
        raise ConfigError(
            f"size is {height}x{width}, but the network {network!r} needs multiples of "
            f"{spec.multiple}: use for example {near[0]}x{near[1]}"
        )
    if spec.size and not spec.keep_aspect and options.size != spec.size:
        raise ConfigError(
            f"size is {height}x{width}, but the network {network!r} only supports "
            f"{spec.size[0]}x{spec.size[1]}"
        )
    if isinstance(model.model, JudgesBatch) and options.batch_size != 1:
        raise ConfigError(
            f"batch_size is {options.batch_size or 'any'}; it must be 1, because results of the "
            f"network {network!r} depend on the whole batch"
        )
    sampling = _sampling(model, options)
    gain = np.asarray(1 / (255 * np.asarray(spec.std)), np.float32)[None, None, None]
    offset = np.asarray(np.asarray(spec.mean) / spec.std, np.float32)[None, None, None]

    def program(variables: Mapping[str, Any], image: Array) -> Array:
        inputs = image.astype(jnp.float32) * gain - offset
        prediction: Any = model.model.apply(variables, inputs, **sampling(image.shape[0]))
        depth: Array = prediction[..., 0]
        limit = model.config.max_depth
        return depth if limit is None else jnp.clip(depth, 0.0, limit)

    return program


def _sampling(model: DepthModel, options: Options) -> Callable[[Any], dict[str, Any]]:
    """Additional arguments of a network that starts from noise; empty for others."""
    module, config = model.model, typing.cast(Any, model.config)
    if not isinstance(module, Denoises):
        return lambda count: {}
    key: Array = jax.random.key(options.seed)
    # Drawn here, so that the program has no random numbers unless the steps need noise.
    noise = np.asarray(random.normal(key, module.latent_shape((1, *options.size, 3))))

    def sampling(count: Any) -> dict[str, Any]:
        arguments = {
            "noise": jnp.broadcast_to(noise, (count, *noise.shape[1:])),
            "num_inference_steps": options.num_inference_steps,
        }
        if config.diffusion.eta > 0:
            arguments["key"] = jnp.broadcast_to(key, (count,))
        return arguments

    return sampling


def onnx(model: DepthModel, options: Options) -> bytes:
    """The model as ONNX, converted with jax2onnx.

    Args:
        model: a network with its weights, which become initialisers in the graph.
        options: see `Options`.

    Returns:
        The file's content: one input `image` uint8 [b, h, w, 3], one output `depth` float32 [b, h,
        w].

    Raises:
        ConfigError: for options that the network does not support; if jax2onnx is missing or cannot
            convert the network; if ONNX Runtime gives another result; or if the file would exceed 2
            GB.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ConfigError(
            f"writing ONNX needs jax2onnx, see requirements-onnx.txt: {error}"
        ) from error
    program = _traced_for(
        "cuda", _program(model, options)
    )  # ONNX supports the operators of that form
    variables = model.variables_at(options.num_inference_steps)
    try:
        graph = jax2onnx.to_onnx(
            functools.partial(program, variables),
            [_image(options)],
            model_name=model.config.name,
            input_names=["image"],
            output_names=["depth"],
        )
        content: bytes = graph.SerializeToString()
        difference = _difference(content, functools.partial(program, variables), options)
    except Exception as error:  # jax2onnx and ONNX Runtime may raise anything
        raise ConfigError(
            f"jax2onnx cannot convert the network {model.config.name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not difference <= _TOLERANCE:
        raise ConfigError(
            f"jax2onnx does not convert the network {model.config.name!r} correctly: for a random "
            f"image, the result is off by {difference:.1g} times its largest value"
        )
    return content


_TOLERANCE = 1e-3


def _difference(
    content: bytes, program: Callable[[UInt8[Array, "b h w 3"]], Array], options: Options
) -> float:
    """The largest difference between ONNX Runtime and JAX, relative to the largest result."""
    import onnxruntime

    shape = (options.batch_size or 1, *options.size, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": image})
    wanted = np.asarray(jax.jit(program)(image))
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
