"""A model as one file that runs without this package: StableHLO, or ONNX.

The file holds weights and program. It takes uint8 RGB images as the network is fed them, and
returns what `DepthModel.predict` returns for such images; the noise of a network that starts from
noise is in the program too.
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
    """Choices that are fixed when a model becomes a file.

    Attributes:
        size: height and width in pixels of the images as the network is fed them: sides are
            multiples of its `input_spec.multiple`. The caller resizes or pads images, and undoes
            that on the result.
        batch_size: images in a call; None for any number.
        num_inference_steps: denoising steps; None for the checkpoint's own number.
        seed: of the noise, which is the same for every image of a call.
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
    """The model as StableHLO, lowered for each of the platforms, which need not be present.

    Args:
        model: a network with its weights, which become constants of the program.
        options: see `Options`.
        platforms: of `ops.platform.PLATFORMS`. Each gets the form that is fast on it.

    Returns:
        A function uint8 [b, h, w, 3] -> float32 [b, h, w], in metres or relative disparity, to be
        called by its method `call`.

    Raises:
        ConfigError: for options that the network cannot have, or an unknown platform.
    """
    unknown = set(platforms) - set(platform.PLATFORMS)
    if unknown or not platforms:
        raise ConfigError(
            f"platforms are {', '.join(platforms) or 'none'}; they must be of "
            f"{', '.join(platform.PLATFORMS)}"
        )
    program, variables = _program(model, options), model.variables_at(options.num_inference_steps)
    forms = {name: _traced_for(name, program) for name in platforms}

    @jax.jit
    def predict(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        # The forms share the weights. Behind the barrier XLA does not compute in advance, slowly,
        # what depends on weights alone.
        return jax.lax.platform_dependent(jax.lax.optimization_barrier(variables), image, **forms)

    return jax_export.export(predict, platforms=platforms)(_image(options))


def serialized(exported: jax_export.Exported) -> bytes:
    """What `jax.export.deserialize` reads.

    Raises:
        ConfigError: where the package `flatbuffers` is missing.
    """
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ConfigError(
            "flatbuffers, which StableHLO is written with, is missing: pip install flatbuffers"
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
    """What `DepthModel.predict` computes, all of it in JAX.

    Raises:
        ConfigError: for options that the network cannot have.
    """
    spec, network = model.input_spec, model.config.name
    height, width = options.size
    if any(side % spec.multiple for side in options.size):
        near = spec.nearest(height, width)
        raise ConfigError(
            f"size is {height} x {width}; the network {network!r} takes sides that are multiples "
            f"of {spec.multiple}: use for example {near[0]} x {near[1]}"
        )
    if spec.size and not spec.keep_aspect and options.size != spec.size:
        raise ConfigError(
            f"size is {height} x {width}; the network {network!r} takes {spec.size[0]} x "
            f"{spec.size[1]} only"
        )
    if isinstance(model.model, JudgesBatch) and options.batch_size != 1:
        raise ConfigError(
            f"batch_size is {options.batch_size or 'any'}; the network {network!r} judges a batch "
            "as a whole: it must be 1"
        )
    sampling = _sampling(model, options)
    gain = np.asarray(1 / (255 * np.asarray(spec.std)), np.float32)[None, None, None]
    offset = np.asarray(np.asarray(spec.mean) / spec.std, np.float32)[None, None, None]

    def program(variables: Mapping[str, Any], image: Array) -> Array:
        fed = image.astype(jnp.float32) * gain - offset
        prediction: Any = model.model.apply(variables, fed, **sampling(image.shape[0]))
        depth: Array = prediction[..., 0]
        limit = model.config.max_depth
        return depth if limit is None else jnp.clip(depth, 0.0, limit)

    return program


def _sampling(model: DepthModel, options: Options) -> Callable[[Any], dict[str, Any]]:
    """Further arguments of a network that starts from noise; empty for others."""
    module, config = model.model, typing.cast(Any, model.config)
    if not isinstance(module, Denoises):
        return lambda count: {}
    key: Array = jax.random.key(options.seed)
    # Drawn here: no random numbers in the program, where no step asks for noise.
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
    """The model as ONNX, converted by jax2onnx.

    Args:
        model: a network with its weights, which become initialisers of the graph.
        options: see `Options`.

    Returns:
        A file: one input `image` uint8 [b, h, w, 3], one output `depth` float32 [b, h, w].

    Raises:
        ConfigError: for options that the network cannot have; where jax2onnx is missing; where it
            cannot convert the network, or ONNX Runtime gives another result (a file holds 2 GB at
            most).
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ConfigError(
            f"ONNX is written by jax2onnx, see requirements-onnx.txt: {error}"
        ) from error
    program = _traced_for("cuda", _program(model, options))  # ONNX has operators for that form
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
    except Exception as error:  # of jax2onnx, or of ONNX Runtime: of any kind
        raise ConfigError(
            f"jax2onnx cannot convert the network {model.config.name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not difference <= _TOLERANCE:
        raise ConfigError(
            f"jax2onnx converts the network {model.config.name!r} wrongly: for a random image the "
            f"result differs by {difference:.1g} of its largest value"
        )
    return content


_TOLERANCE = 1e-3


def _difference(
    content: bytes, program: Callable[[UInt8[Array, "b h w 3"]], Array], options: Options
) -> float:
    """The largest difference between ONNX Runtime and JAX, over the largest result."""
    import onnxruntime

    shape = (options.batch_size or 1, *options.size, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": image})
    wanted = np.asarray(jax.jit(program)(image))
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
