"""The interface of networks: what every other file here provides, and what only some do.

Each network is a file. `Network` lists what it provides, and `of` finds the file of a config.
Optional capabilities are classes that the network's module or config inherits from, and that
callers check with `isinstance`:

    Denoises        module   turns noise into a latent under a condition, in steps
    Recalibrates    module   its decoder's statistics depend on the number of denoising steps
    JudgesBatch     module   an image's result depends on the rest of its batch
    PredictsScales  module   predicts inverse depth at several scales
    HasEncoder      config   has an encoder that can be initialised from pretrained weights
    Published       config   has published weight names, so its weights can be exported
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import jax

from diffdepth_jax import registry
from diffdepth_jax.config import choice
from diffdepth_jax.typing import InputSpec, Output
from diffdepth_jax.weights.rules import Rules


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Base class of every network's `Config`.

    Attributes:
        name: the network's name in the registry.
        max_depth: metres; `predict` clips to it, the module itself does not. Only for networks
            that predict metres.
    """

    name: str
    max_depth: float | None = None

    def __post_init__(self) -> None:
        if self.max_depth is not None and not self.max_depth > 0:
            raise ValueError(f"max_depth is {self.max_depth}; it must be positive or None")
        if self.max_depth is not None and self.output == "relative_disparity":
            raise ValueError(
                f"max_depth is {self.max_depth} metres, but {self.name!r} predicts relative "
                "disparity: leave it out"
            )

    @property
    def output(self) -> Output:
        """What the network predicts: by default the file's `OUTPUT`."""
        return of(self).OUTPUT

    @property
    def input_spec(self) -> InputSpec:
        """The form of input images: by default the file's `INPUT`."""
        return of(self).INPUT


@dataclass(frozen=True)
class TransformersLayout:
    """How Hugging Face's transformers stores a network: names, `config.json`, preprocessing.

    Attributes:
        model_type: `model_type` in `config.json`.
        infer: returns the config for names and shapes and the content of `config.json` (empty if
            there is none); None if the weights are in a different layout. Raises ValueError if
            `config.json` describes an impossible network.
        rules: returns the conversion table for a config.
        describe: returns the content of `config.json` for a config.
        preprocessor: returns the content of `preprocessor_config.json` for a config.
    """

    model_type: str
    infer: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], Any]
    rules: Callable[[Any], Rules]
    describe: Callable[[Any], dict[str, Any]]
    preprocessor: Callable[[Any], dict[str, Any]]


@runtime_checkable
class Network(Protocol):
    """What the file of a network provides.

    Attributes:
        Config: the config class, a frozen dataclass.
        VARIANTS: predefined configs by name.
        OUTPUT, INPUT: defaults for `NetworkConfig.output` and `NetworkConfig.input_spec`.
        FILES: maps patterns of published file names, without suffix, to the config fields that the
            weights in such a file do not determine.
        TRANSFORMERS: how Hugging Face's transformers stores the network; None if it does not.
        UNDETERMINED: maps config fields that weights do not determine, and that have no safe
            default, to their possible values. `load` takes them from the file's name or from the
            caller.
    """

    Config: type[NetworkConfig]
    VARIANTS: Mapping[str, NetworkConfig]
    OUTPUT: Output
    INPUT: InputSpec
    FILES: Mapping[str, Mapping[str, Any]]
    UNDETERMINED: Mapping[str, Sequence[Any]]
    TRANSFORMERS: TransformersLayout | None

    def build(self, config: Any, dtype: Any = ..., frozen: tuple[str, ...] = ()) -> nn.Module:
        """The module, with `config` and `init_variables(key)`; called with `(image, train=False)`.

        Args:
            config: a `Config`.
            dtype: type used by convolutions and matrix products; parameters, normalisation
                statistics and results are float32.
            frozen: parts that are not trained; during training too, they run as in inference.
        """

    def rules(self, config: Any) -> Rules:
        """The conversion table for the published names; empty if there are none."""

    def infer(self, shapes: Mapping[str, tuple[int, ...]]) -> NetworkConfig | None:
        """The config inferred from the names and shapes of published weights, or None."""

    def with_arguments(self, config: Any, arguments: Mapping[str, Any]) -> NetworkConfig:
        """The config updated from a published checkpoint's `args`."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """What `with_arguments` reads: the fields that weights do not determine."""


def of(config: NetworkConfig) -> Network:
    """The module (file) of a config's network."""
    return registry.module("network", config.name)


def expected_variables(module: nn.Module) -> dict[str, Any]:
    """Shapes and types of a network's variables, without computing any."""
    return jax.tree.map(lambda leaf: leaf, _traced(module))  # a copy, which the caller may change


@functools.lru_cache(maxsize=256)
def _traced(module: nn.Module) -> dict[str, Any]:
    """Cached, as tracing a network can take seconds."""
    return jax.eval_shape(module.init_variables, jax.random.key(0))


class Denoises:
    """Capability of a module: turns noise into a latent, and the latent into depth.

    It is called with `(image, noise, train=False, num_inference_steps=None, key=None)`, and its
    config has the fields `diffusion` (schedule and sampler) and `codec`.
    """

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps that the model was trained with."""
        raise NotImplementedError

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps of the noise schedule, the maximum number of denoising steps."""
        raise NotImplementedError

    def timesteps(self, num_inference_steps: int | None = None) -> Any:
        """Decreasing timesteps of the sampler, [n]; None for the model's own number of steps."""
        raise NotImplementedError

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the noise for images of shape [b, h, w, 3]."""
        raise NotImplementedError

    def encode_image(self, image: Any, train: bool = False) -> Any:
        """Normalised image to condition."""
        raise NotImplementedError

    def condition(self, image: Any, train: bool = False) -> Any:
        """`encode_image` for images of any size, as input to `depth_from_noise`."""
        raise NotImplementedError

    def depth_from_noise(
        self,
        condition: Any,
        noise: Any,
        size: tuple[int, int],
        train: bool = False,
        num_inference_steps: int | None = None,
        *,
        key: Any = None,
    ) -> Any:
        """Noise to depth for an image of `size`, given its `condition`; otherwise like the call."""
        raise NotImplementedError

    def sample(self, condition: Any, noise: Any, num_inference_steps: int | None = None) -> Any:
        """Noise to latent under a condition."""
        raise NotImplementedError

    def predict_noise(self, condition: Any, latent: Any, timesteps: Any) -> Any:
        """The denoiser's output for noisy latents."""
        raise NotImplementedError

    def decode_latent(self, latent: Any, train: bool = False) -> Any:
        """Latent to depth."""
        raise NotImplementedError

    def encode_depth(self, depth: Any, train: bool = False) -> Any:
        """Depth to latent."""
        raise NotImplementedError


class Recalibrates(Denoises):
    """Capability of a module: the BatchNorm layers in `decode_latent` have running statistics that
    depend on the number of denoising steps (see `inference.recalibration`)."""


class JudgesBatch:
    """Capability of a module: it makes a decision for the whole batch, so an image's result depends
    on the others."""


class PredictsScales:
    """Capability of a module: predicts inverse depth at several scales, for training losses.

    Attributes:
        num_scales: number of scales; each has half the height and width of the previous one.
    """

    num_scales: ClassVar[int]

    def inverse_depths(self, image: Any, train: bool = False) -> tuple[Any, ...]:
        """Normalised image to inverse depth in 1/m, starting at the image's size."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class HasEncoder:
    """Capability of a config: the module's part `encoder` is a registered encoder.

    Attributes:
        encoder: that encoder's config.
    """

    encoder: Any = choice("encoder")


class Published:
    """Capability of a config: `rules` covers every weight with published names, so models can be
    exported."""


C = TypeVar("C", bound=NetworkConfig)


class Variants(Mapping[str, C], Generic[C]):
    """Predefined configs by name, built on demand, so that an encoder's file is only imported when
    needed.

    Args:
        builders: functions without arguments.
    """

    def __init__(self, builders: Mapping[str, Callable[[], C]]):
        self._builders = dict(builders)

    def __getitem__(self, name: str) -> C:
        return self._builders[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)


def encoder_variant(name: str, variant: str) -> Any:
    """The config of an encoder variant."""
    return registry.module("encoder", name).VARIANTS[variant]
