"""The contract of networks: what every other file here offers, and what only some do.

A network is a file. `Network` lists what it offers, and `of` finds it by a config. What only some
networks can do is a class that their module or config inherits from, which callers check with
`isinstance`:

    Denoises        module   turns noise into a latent under a condition, in steps
    Recalibrates    module   its decoder's statistics belong to a number of denoising steps
    JudgesBatch     module   an image's result depends on the others of its batch
    PredictsScales  module   gives inverse depth at several scales
    HasEncoder      config   has an encoder that pretrained weights can fill
    Published       config   has the names of a publication: its weights can be exported
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import flax.linen as nn

from diffdepth_jax import registry
from diffdepth_jax.config import choice
from diffdepth_jax.typing import InputSpec, Output
from diffdepth_jax.weights.rules import Rules


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Base class of every network's `Config`.

    Attributes:
        name: of the network in the registry.
        max_depth: metres; predictions are clipped to it, the module's own results are not.
    """

    name: str
    max_depth: float | None = None

    def __post_init__(self):
        if self.max_depth is not None and not self.max_depth > 0:
            raise ValueError(f"max_depth is {self.max_depth}; it must be positive or None")

    @property
    def output(self) -> Output:
        """What the network's numbers mean: the file's `OUTPUT`, unless fields decide."""
        return of(self).OUTPUT

    @property
    def input_spec(self) -> InputSpec:
        """The form of images: the file's `INPUT`, unless fields decide."""
        return of(self).INPUT


@dataclass(frozen=True)
class TransformersLayout:
    """How Hugging Face's transformers stores a network: names, `config.json`, preprocessing.

    Attributes:
        model_type: of `config.json`.
        infer: from names and shapes, and the content of `config.json` (empty if there is none), to
            the config; None if the weights are not in this layout. Raises ValueError for a
            `config.json` that describes an impossible network.
        rules: the table of a config's names.
        describe: from a config to the content of `config.json`.
        preprocessor: from a config to the content of `preprocessor_config.json`.
    """

    model_type: str
    infer: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], Any]
    rules: Callable[[Any], Rules]
    describe: Callable[[Any], dict[str, Any]]
    preprocessor: Callable[[Any], dict[str, Any]]


@runtime_checkable
class Network(Protocol):
    """What the file of a network offers.

    Attributes:
        Config: the config class, a frozen dataclass.
        VARIANTS: ready configs by name.
        OUTPUT, INPUT: unless a config says otherwise, see `NetworkConfig`.
        FILES: patterns of published file names, without suffix, to the fields that the weights in
            such a file do not determine.
        TRANSFORMERS: how Hugging Face's transformers stores the network; None if it does not.
        UNTOLD: fields that weights do not determine and that have no safe default, to their
            possible values. `load` gets them from the file's name or from the caller.
    """

    Config: type[NetworkConfig]
    VARIANTS: Mapping[str, NetworkConfig]
    OUTPUT: Output
    INPUT: InputSpec
    FILES: Mapping[str, Mapping[str, Any]]
    UNTOLD: Mapping[str, Sequence[Any]]
    TRANSFORMERS: TransformersLayout | None

    def build(self, config: Any, dtype: Any = ..., frozen: tuple[str, ...] = ()) -> nn.Module:
        """The module: `config`, `init_variables(key)`, and a call with `(image, train=False)`.

        Args:
            config: a `Config`.
            dtype: of convolutions and matrix products; parameters, the norms' statistics and
                results are float32.
            frozen: parts that are not trained: they work as in inference in training too.
        """

    def rules(self, config: Any) -> Rules:
        """The table of the published names; empty if there are none."""

    def infer(self, shapes: Mapping[str, tuple[int, ...]]) -> NetworkConfig | None:
        """The config of published weights with these names and shapes, or None."""

    def with_arguments(self, config: Any, arguments: Mapping[str, Any]) -> NetworkConfig:
        """The config with what a published checkpoint's `args` say."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """What `with_arguments` reads: the fields that weights do not determine."""


def of(config: NetworkConfig) -> Network:
    """The file of a config's network."""
    return registry.module("network", config.name)


class Denoises:
    """Capability of a module that turns noise into a latent, and the latent into depth.

    Its call is `(image, noise, train=False, num_inference_steps=None, key=None)`; its config has
    the fields `diffusion` (schedule and sampler) and `codec`.
    """

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps that the model was trained with."""
        raise NotImplementedError

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps of the noise schedule: the largest number of denoising steps."""
        raise NotImplementedError

    def timesteps(self, num_inference_steps: int | None = None) -> Any:
        """Where the sampler calls the denoiser, falling, [n]; of the model's own number if None."""
        raise NotImplementedError

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the noise for images of shape [b, h, w, 3]."""
        raise NotImplementedError

    def encode_image(self, image: Any, train: bool = False) -> Any:
        """Normalised image to condition."""
        raise NotImplementedError

    def condition(self, image: Any, train: bool = False) -> Any:
        """`encode_image` of an image of any size, for `depth_from_noise`."""
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
        """Noise to depth of an image of `size` whose `condition` is known: with that, the call."""
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
    belong to one number of denoising steps (see `inference.recalibration`)."""


class JudgesBatch:
    """Capability of a module: it decides something for the batch as a whole, so that an image's
    result depends on the others of its batch."""


class PredictsScales:
    """Capability of a module: it gives inverse depth at several scales, for use in training losses.

    Attributes:
        num_scales: how many; each has half of the sides of the one before.
    """

    num_scales: ClassVar[int]

    def inverse_depths(self, image: Any, train: bool = False) -> tuple[Any, ...]:
        """Normalised image to 1 / depth in 1/m, at the image's size first."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class HasEncoder:
    """Capability of a config: the part `encoder` of its module is a registered encoder.

    Attributes:
        encoder: that encoder's config.
    """

    encoder: Any = choice("encoder")


class Published:
    """Capability of a config: `rules` names every weight as its publication does, so that the
    model can be exported."""


C = TypeVar("C", bound=NetworkConfig)


class Variants(Mapping[str, C], Generic[C]):
    """Ready configs by name, each built on demand, so that its encoder's file is only imported
    then.

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
    """The config of an encoder's variant."""
    return registry.module("encoder", name).VARIANTS[variant]
