"""Appearance of surfaces: colours, gloss, and procedural NumPy textures.

Textures are uint8 sRGB `[h w 3]`, with row 0 at the top, and tile seamlessly where documented.
Randomness comes from the given generator, so equal seeds give equal bytes.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike

GROUND = ("road", "pavement", "marking", "kerb", "dirt")  # roles that rain makes wet

Colour = ArrayLike  # three numbers, sRGB, each in [0, 1]


@dataclass(frozen=True, eq=False)
class Material:
    """A surface.

    Attributes:
        role: what it is ("road", "paint", "glass", ...); weather and night depend on the role.
        texture: uint8 sRGB `[h w 3]`.
        gloss: 0 for matt; in (0, 1] for a clear coat, where 1 is mirror-smooth.
        kind: "opaque"; "glass", the surface of a solid glass body; "thin_glass", a single sheet; or
            "mirror". The last three are tinted by their texture's colour (white: clear).
        emission: uint8 sRGB `[h w 3]` of emitted light, or None. It is visible, but does not light
            the scene, unlike the layout's lamps and panels.
        radiance: radiance of white in `emission`, in the layout's unit.
    """

    role: str
    texture: UInt8[np.ndarray, "h w 3"]
    gloss: float = 0.0
    kind: Literal["opaque", "glass", "thin_glass", "mirror"] = "opaque"
    emission: UInt8[np.ndarray, "h w 3"] | None = None
    radiance: float = 0.0


def plain(role: str, colour: Colour, gloss: float = 0.0) -> Material:
    """A surface with a uniform sRGB colour in [0, 1]."""
    texture = to_bytes(np.asarray(colour, float))
    return Material(role, np.broadcast_to(texture, (2, 2, 3)).copy(), gloss)


def muted(rng: np.random.Generator, darkest: float, lightest: float) -> Float[np.ndarray, "3"]:
    """A random sRGB colour, rarely garish, like most cloth and paint in a street."""
    strength = 0.12 + 0.3 * rng.random() ** 2
    return np.clip(
        rng.uniform(darkest, lightest) * (1 + strength * rng.uniform(-1.5, 1.5, 3)), 0, 0.95
    )


def noise(
    rng: np.random.Generator, height: int, width: int, slope: float = 1.0, finest: float = 0.5
) -> Float[np.ndarray, "h w"]:
    """Seamless random field `[h w]` with mean 0 and standard deviation 1.

    Args:
        rng: source of randomness.
        height, width: size in pixels.
        slope: amplitude falls off as frequency ** -slope; 0 is white noise, 2 is cloudy.
        finest: highest frequency kept, in cycles per pixel.
    """
    spectrum = np.fft.rfft2(rng.normal(size=(height, width)))
    field = np.fft.irfft2(spectrum * _amplitude(height, width, slope, finest), s=(height, width))
    return field / field.std()


@functools.lru_cache(maxsize=64)
def _amplitude(height: int, width: int, slope: float, finest: float) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = np.where(frequency > 0, np.maximum(frequency, 1e-6) ** -slope, 0.0)
    return np.where(frequency <= finest, amplitude, 0.0)


def to_bytes(image: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Bytes of an sRGB image in [0, 1]; values outside are clipped."""
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def mottled(
    rng: np.random.Generator, size: tuple[int, int], colour: Colour, contrast: float, slope: float
) -> np.ndarray:
    """Float `[h w 3]`: a colour whose brightness varies by the relative `contrast`."""
    field = noise(rng, *size, slope=slope)
    return np.asarray(colour, float) * (1 + contrast * field[..., None])


WALL_TEXTURE_SIZE = 3.0  # metres per repeat of `wall`


def wall(rng: np.random.Generator, style: str) -> Material:
    """A seamless piece of wall, WALL_TEXTURE_SIZE square: "brick", "plaster", "stone", "panel"."""
    size = (240, 240)
    if style == "brick":
        colour = [(0.55, 0.30, 0.22), (0.62, 0.42, 0.30), (0.45, 0.27, 0.22), (0.70, 0.60, 0.46)][
            rng.integers(4)
        ]
        image = mottled(rng, size, colour, 0.06, 0.3)
        row, column = np.mgrid[: size[0], : size[1]]
        course = row // 8
        brick = (column + 10 * (course % 2)) // 20 % 12
        tones = rng.normal(1, 0.12, size=(30, 12))
        image *= tones[course, brick][..., None]
        joint = (row % 8 == 0) | ((column + 10 * (course % 2)) % 20 == 0)
        image[joint] = np.array([0.62, 0.58, 0.52]) * 0.95
    elif style == "plaster":
        hue = [
            (0.86, 0.80, 0.66),
            (0.88, 0.85, 0.78),
            (0.82, 0.67, 0.50),
            (0.74, 0.76, 0.74),
            (0.85, 0.72, 0.62),
            (0.68, 0.72, 0.62),
            (0.90, 0.88, 0.86),
            (0.76, 0.60, 0.52),
        ][rng.integers(8)]
        image = mottled(rng, size, hue, 0.025, 1.2)
        image *= 1 + 0.02 * rng.normal(size=(*size, 1))
    elif style == "stone":
        base = np.array([0.66, 0.61, 0.52]) * rng.uniform(0.8, 1.15)
        image = mottled(rng, size, base, 0.05, 0.7)
        row, column = np.mgrid[: size[0], : size[1]]
        course = row // 40
        stone = (column + 30 * (course % 2)) // 60 % 4
        image *= rng.normal(1, 0.07, size=(6, 4))[course, stone][..., None]
        image[(row % 40 < 2) | ((column + 30 * (course % 2)) % 60 < 2)] *= 0.7
    elif style == "panel":
        metal = [(0.66, 0.68, 0.70), (0.50, 0.56, 0.60), (0.74, 0.72, 0.66), (0.42, 0.50, 0.58)][
            rng.integers(4)
        ]
        image = mottled(rng, size, metal, 0.02, 1.0)
        image *= (1 + 0.10 * np.sin(np.arange(size[1]) * 2 * np.pi / 15))[None, :, None]
        image[::120] *= 0.7
    else:
        raise ValueError(f"no wall style {style!r}: choose brick, plaster, stone or panel")
    return Material("wall", to_bytes(image))
