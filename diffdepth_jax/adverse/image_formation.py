"""Effects of light, air, water, snow, lens and sensor on a clean image with known depth.

Uses published models of image formation, on linear radiance:

- fog and haze: Koschmieder (1924), with extinction = ln 20 / visibility (WMO, guide no. 8),
  modulated by a smooth random field;
- night: albedo from the daytime image under weak bluish light, headlights with inverse-square
  falloff, lamps with halos from air and lens, photon and amplifier noise (Foi et al. 2008,
  "Practical Poissonian-Gaussian noise modeling");
- rain: streaks whose length and number depend on their distance (Garg and Nayar 2007, "Vision and
  Rain"), occluded by nearer objects; wet ground that is darker (Lekner and Dorf 1988, "Why some
  things are darker when wet") and reflects by Fresnel's law (Schlick 1994);
- snow: cover on surfaces facing up, and flakes by distance, defocused when near;
- glare: veiling glare of a low sun, falling off with the squared angle (Stiles 1929, Holladay 1926;
  CIE 135/1).

Depth determines the effects and never changes, so the clean image's depth stays the label.
Arrays are NumPy float64 [h, w] or [h, w, 3]; lengths are metres, angles radians.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from diffdepth_jax.data import resampling
from diffdepth_jax.scenes.weather import LUMINANCE, encoded, hazy

Numbers = dict[str, float]  # random parameters by name

_SKY = 1e4  # metres
_FOCAL = 0.8  # of the width, if the camera is unknown
_RAINDROP = 0.003  # diameter in metres; falls at 8 m/s
_FALL = 0.12  # metres that a drop falls during the exposure of 1/66 s
_FLAKE = 0.012  # diameter in metres


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image with depth, in the form that the models below need.

    Attributes:
        radiance: linear [h, w, 3], 1 is white.
        depth: [h, w] along the optical axis; very large in the sky.
        sky: [h, w].
        rays: [h, w, 3], from the camera, with length 1 along the optical axis; x right, y down.
        horizon: image row in which a level camera sees the horizon.
        focal: focal length in pixels.
    """

    radiance: Float[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]
    sky: Bool[np.ndarray, "h w"]
    rays: Float[np.ndarray, "h w 3"]
    horizon: float
    focal: float

    @property
    def size(self) -> tuple[int, int]:
        return self.depth.shape

    @property
    def distance(self) -> Float[np.ndarray, "h w"]:
        """Distance along the line of sight."""
        return self.depth * np.linalg.norm(self.rays, axis=-1)


def scene(
    image: UInt8[np.ndarray, "h w 3"],
    depth: Float[np.ndarray, "h w"],
    intrinsics: tuple[float, ...] | None = None,
) -> Scene:
    """
    Args:
        image: RGB.
        depth: metres; 0 or non-finite where unknown, which counts as sky. If it is known
            everywhere, as predicted by networks, the sky is detected in the image.
        intrinsics: the camera matrix, row by row; None for a typical lens.
    """
    height, width = depth.shape
    if intrinsics is None:
        focal, centre = _FOCAL * width, (width / 2, height / 2)
        focals = focal, focal
    else:
        focals, centre = (intrinsics[0], intrinsics[4]), (intrinsics[2], intrinsics[5])
    row, column = np.mgrid[:height, :width]
    rays = np.stack(
        [
            (column - centre[0]) / focals[0],
            (row - centre[1]) / focals[1],
            np.ones_like(row, float),
        ],
        -1,
    )
    unknown = ~np.isfinite(depth) | (depth <= 0)
    known = np.where(unknown, _SKY, depth).astype(np.float64)
    sky = unknown if unknown.any() else _looks_like_sky(image, known)
    known[sky] = _SKY
    return Scene(_linear(image), known, sky, rays, float(centre[1]), float(focals[1]))


def relative_depth(disparity: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Plausible depth for a relative disparity, from 4 m to 80 m.

    Scale and shift are unknown; here the largest disparity becomes 4 m and the smallest 80 m. The
    strength of distance-dependent effects is then a guess, but their order is correct.
    """
    low, high = float(np.nanmin(disparity)), float(np.nanmax(disparity))
    share = (disparity - low) / max(high - low, float(np.finfo(np.float32).tiny))
    return 1 / (1 / 80 + share * (1 / 4 - 1 / 80))


# ---- conditions ----------------------------------------------------------------------------------


def fog(scene: Scene, rng: np.random.Generator) -> tuple[Float[np.ndarray, "h w 3"], Numbers]:
    """Fog with 25 to 150 m visibility."""
    sight = float(np.exp(rng.uniform(np.log(25), np.log(150))))
    brightness = rng.uniform(0.45, 0.75)
    tint = np.array([0.97, 1.0, 1.03]) ** rng.uniform(0, 1)
    radiance = _haze(scene, rng, scene.radiance, np.log(20) / sight, brightness * tint)
    return radiance, {"sight_m": sight, "airlight": brightness}


def dust(scene: Scene, rng: np.random.Generator) -> tuple[Float[np.ndarray, "h w 3"], Numbers]:
    """Yellow to brown dust in the air, with 20 to 100 m visibility."""
    sight = float(np.exp(rng.uniform(np.log(20), np.log(100))))
    brightness = rng.uniform(0.3, 0.5)
    redness = rng.uniform(0.5, 1.0)
    colour = np.array([1.0, 1 - 0.3 * redness, 1 - 0.72 * redness])
    # The light that reaches the ground has also passed through dust.
    light = scene.radiance * (0.55 + 0.45 * colour)
    radiance = _haze(scene, rng, light, np.log(20) / sight, brightness * colour)
    return radiance, {"sight_m": sight, "redness": redness}


def night(scene: Scene, rng: np.random.Generator) -> tuple[Float[np.ndarray, "h w 3"], Numbers]:
    """Night: weak bluish light, the car's own headlights, street lamps, a noisy sensor."""
    radiance, numbers = _night_light(scene, rng, scene.radiance)
    return _noisy(rng, radiance, numbers["photons"]), numbers


def rain(scene: Scene, rng: np.random.Generator) -> tuple[Float[np.ndarray, "h w 3"], Numbers]:
    """Rain by day: dull light, wet reflecting ground, haze, streaks."""
    amount = rng.uniform(0.5, 1.0)
    radiance = _overcast(scene, rng, scene.radiance, rng.uniform(0.5, 0.8))
    radiance = _wet(scene, rng, radiance, amount)
    grey = np.full(3, np.quantile(radiance @ LUMINANCE, 0.9))
    extinction = amount * rng.uniform(0.008, 0.018)
    radiance = _haze(scene, rng, radiance, extinction, grey)
    radiance = _streaks(scene, rng, radiance, amount)
    return radiance, {"amount": amount, "extinction": extinction}


def night_rain(
    scene: Scene, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "h w 3"], Numbers]:
    """Rain at night: lamps and headlights reflected by the ground, streaks in the light."""
    amount = rng.uniform(0.5, 1.0)
    radiance, numbers = _night_light(scene, rng, scene.radiance)
    radiance = 1.5 * _wet(scene, rng, radiance, amount, mirror=2.5)  # a longer exposure
    grey = np.full(3, 0.6 * np.mean(radiance @ LUMINANCE))
    radiance = _haze(scene, rng, radiance, amount * rng.uniform(0.008, 0.018), grey)
    radiance = _streaks(scene, rng, radiance, amount)
    return _noisy(rng, radiance, numbers["photons"]), {**numbers, "amount": amount}


def snow(scene: Scene, rng: np.random.Generator) -> tuple[Float[np.ndarray, "h w 3"], Numbers]:
    """Snow on surfaces facing up, and in the air."""
    cover, amount = rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.0)
    radiance = _overcast(scene, rng, scene.radiance, rng.uniform(0.7, 0.9))
    white = np.array([0.86, 0.89, 0.95]) * rng.uniform(0.62, 0.8)
    covered = _upward(scene) * cover
    # Wind and wheels leave some of it bare.
    covered = np.clip(covered * 2.2 - 1.1 * _field(rng, scene.size, 0.12), 0, 1)
    shade = 0.75 + 0.25 * _shading(scene.radiance)
    radiance = radiance * (1 - covered[..., None]) + (white * shade[..., None]) * covered[..., None]
    extinction = amount * rng.uniform(0.008, 0.02)
    radiance = _haze(scene, rng, radiance, extinction, 1.02 * white)
    radiance = _flakes(scene, rng, radiance, amount, white)
    return radiance, {"cover": cover, "amount": amount, "extinction": extinction}


def glare(scene: Scene, rng: np.random.Generator) -> tuple[Float[np.ndarray, "h w 3"], Numbers]:
    """A low sun in view: lower exposure, and veiling glare over everything."""
    height, width = scene.size
    low = scene.horizon - np.arange(height)[:, None] < 0.4 * height
    places = np.argwhere(scene.sky & low)
    if len(places):
        row, column = map(float, places[rng.integers(len(places))])
    else:  # above the image
        row, column = -0.1 * height, float(rng.uniform(0.2, 0.8) * width)
    toward = np.array([(column - width / 2) / scene.focal, (row - scene.horizon) / scene.focal, 1])
    rays = scene.rays / np.linalg.norm(scene.rays, axis=-1, keepdims=True)
    cosine = (rays @ (toward / np.linalg.norm(toward))).clip(-1, 1)
    angle = np.degrees(np.arccos(cosine))
    strength = rng.uniform(0.6, 1.2)
    warm = np.array([1.0, 0.87, 0.66])
    veil = 14.0 / (angle**2 + 4.0) + 0.5 / (1 + angle / 10) ** 2
    disc = 30.0 * np.exp(-((angle / 1.2) ** 4)) * (scene.sky | (angle < 0.8))
    # Looking towards the sun, everything shows its shaded side.
    backlit = 0.22 + 0.4 * np.clip(angle / 60, 0, 1)
    radiance = scene.radiance * np.where(scene.sky, 0.9, backlit)[..., None]
    radiance = radiance * (0.6 + 0.4 * warm) + strength * (veil + disc)[..., None] * warm
    return radiance, {"strength": strength, "row": row, "column": column}


CONDITIONS = {
    "night": night,
    "rain": rain,
    "night-rain": night_rain,
    "fog": fog,
    "snow": snow,
    "glare": glare,
    "dust": dust,
}


def render(
    condition: str, scene: Scene, seed: int
) -> tuple[UInt8[np.ndarray, "h w 3"], dict[str, Any]]:
    """The image under a condition, and the strengths drawn from `seed`.

    Args:
        condition: a key of `CONDITIONS`.
    """
    radiance, numbers = CONDITIONS[condition](scene, np.random.default_rng(seed))
    return _developed(radiance), {name: round(value, 5) for name, value in numbers.items()}


# ---- air -----------------------------------------------------------------------------------------


def _haze(
    scene: Scene,
    rng: np.random.Generator,
    radiance: np.ndarray,
    extinction: float,
    airlight: np.ndarray,
) -> np.ndarray:
    """Koschmieder's law with extinction that varies by a third over the image."""
    uneven = 1 + 0.33 * (2 * _field(rng, scene.size, 0.35) - 1)
    clarity = np.exp(-extinction * uneven * scene.distance)
    # Forward-scattered light also arrives, blurred.
    blurred = _blurred(radiance, 0.008 * scene.size[0])
    share = 0.5 * (1 - clarity)[..., None]
    return hazy(radiance * (1 - share) + blurred * share, clarity, airlight)


def _streaks(
    scene: Scene, rng: np.random.Generator, radiance: np.ndarray, amount: float
) -> np.ndarray:
    """Raindrops in distance layers from 0.8 m to 16 m, occluded by nearer objects."""
    height, width = scene.size
    slant = rng.uniform(-0.2, 0.2)
    light = 1.1 * _blurred(radiance, 0.08 * height) + 0.02
    light += 0.35 * np.quantile(radiance @ LUMINANCE, 0.95)
    for distance, nearer in zip(_LAYERS, (0.5, *_LAYERS), strict=False):
        length = max(scene.focal * _FALL / distance, 1.5)
        breadth = max(scene.focal * _RAINDROP / distance, 0.35)
        # Drops in the visible volume between two layers, at 120 per cubic metre.
        area = height * width / scene.focal**2
        count = amount * 120 * area * (distance**3 - nearer**3) / 3
        layer = _lines(
            rng, (height, width), min(count, 0.02 * height * width), length, breadth, slant
        )
        # A drop covers a pixel for the fraction of the exposure that it takes to pass.
        veil = np.clip(0.5 * layer * min(1.0, breadth), 0, 0.6) * (scene.distance > distance)
        radiance = radiance * (1 - veil[..., None]) + light * veil[..., None]
    return radiance


def _flakes(
    scene: Scene,
    rng: np.random.Generator,
    radiance: np.ndarray,
    amount: float,
    white: np.ndarray,
) -> np.ndarray:
    """Flakes in distance layers, larger and out of focus nearby."""
    height, width = scene.size
    for distance, nearer in zip(_LAYERS, (0.5, *_LAYERS), strict=False):
        size = scene.focal * _FLAKE / distance / 2
        defocus = scene.focal * 0.004 / distance  # 4 mm aperture focused far away
        radius = float(np.hypot(size, defocus))
        area = height * width / scene.focal**2
        count = amount * 60 * area * (distance**3 - nearer**3) / 3
        points = _points(rng, (height, width), min(count, 0.05 * height * width))
        spread = max(radius, 0.4)
        layer = ndimage.gaussian_filter(points, spread, mode="constant") * 2 * np.pi * spread**2
        opacity = 0.85 * min(1.0, (size / spread) ** 2 + 0.25) * min(1.0, radius / 0.4)
        veil = np.clip(opacity * layer, 0, 0.95) * (scene.distance > distance)
        radiance = radiance * (1 - veil[..., None]) + 1.1 * white * veil[..., None]
    return radiance


_LAYERS = (0.8, 1.5, 3.0, 6.0, 11.0, 18.0)  # metres


# ---- light ---------------------------------------------------------------------------------------


def _night_light(
    scene: Scene, rng: np.random.Generator, radiance: np.ndarray
) -> tuple[np.ndarray, Numbers]:
    """Linear radiance, exposed as by a camera, before the sensor."""
    ambient = float(np.exp(rng.uniform(np.log(0.02), np.log(0.07))))
    headlights = rng.uniform(0.5, 1.3)
    moonlight = np.array([0.75, 0.85, 1.15])
    # Dividing by the smooth part of the daylight approximates albedo.
    albedo = radiance / (0.25 + _blurred(radiance @ LUMINANCE, 0.12 * scene.size[0]))[
        ..., None
    ].clip(0.15)
    dark = albedo * moonlight * ambient
    beam = _headlights(scene) * headlights
    warm = np.array([1.0, 0.93, 0.78])
    lit = dark + albedo * beam[..., None] * warm
    lamps, glow = _lamps(scene, rng)
    lit = lit + 0.5 * albedo * lamps
    lit[scene.sky] = 0.25 * ambient * np.array([0.8, 0.85, 1.2])
    lit = lit + glow
    numbers = {
        "ambient": ambient,
        "headlights": headlights,
        "photons": float(np.exp(rng.uniform(np.log(150), np.log(1200)))),
    }
    return lit, numbers


def _headlights(scene: Scene) -> np.ndarray:
    """Illumination by dipped headlights at the camera: below the cut-off, with 1 / distance^2."""
    right, down = scene.rays[..., 0], scene.rays[..., 1]
    cone = np.exp(-((right / 0.35) ** 2))
    # Above the cut-off, a degree below the horizon, little light is left.
    cut = 1 / (1 + np.exp(-(down - 0.02) / 0.02))
    return (0.06 + 0.94 * cut) * cone * np.minimum(60 / np.maximum(scene.distance, 4.0) ** 2, 1.2)


def _lamps(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Street lamps: the light on their surroundings, and visible lamps with a halo."""
    height, width = scene.size
    count = int(rng.integers(3, 8))
    lit, glow = np.zeros((height, width, 3)), np.zeros((height, width, 3))
    row, column = np.mgrid[:height, :width]
    points = scene.rays * np.minimum(scene.depth, 200)[..., None]
    for _ in range(count):
        distance = float(np.exp(rng.uniform(np.log(8), np.log(60))))
        side, above = rng.choice([-1, 1]) * rng.uniform(3, 8), rng.uniform(3.5, 6)
        place = np.array([side, -above, distance])
        at = scene.focal * place[:2] / distance + [width / 2, scene.horizon]
        colour = np.array([1.0, 0.72, 0.38]) if rng.random() < 0.6 else np.array([0.9, 0.95, 1.0])
        squared = ((points - place) ** 2).sum(-1)
        lit += (6 / (squared + 4))[..., None] * colour * ~scene.sky[..., None]
        radius = max(scene.focal * 0.15 / distance, 0.6)
        apart = np.hypot(row - at[1], column - at[0])
        seen = scene.distance > 0.8 * distance
        core = np.exp(-((apart / radius) ** 2)) * seen
        # Point spread function of air and lens, with a long tail.
        halo = 0.1 / (1 + (apart / (2.5 * radius)) ** 2) ** 1.25
        glow += (4.0 * core + halo)[..., None] * colour
    return lit, glow


def _overcast(
    scene: Scene, rng: np.random.Generator, radiance: np.ndarray, brightness: float
) -> np.ndarray:
    """Light from an overcast sky: less contrast, less colour, and clouds."""
    luminance = radiance @ LUMINANCE
    smooth = _blurred(luminance, 0.1 * scene.size[0])
    even = np.median(luminance[~scene.sky]) if (~scene.sky).any() else luminance.mean()
    gain = ((even + 0.05) / (smooth + 0.05)) ** 0.5
    radiance = radiance * gain[..., None] * brightness
    grey = (radiance @ LUMINANCE)[..., None]
    radiance = 0.6 * radiance + 0.4 * grey
    clouds = 0.75 * (0.8 + 0.4 * _field(rng, scene.size, 0.3)) * brightness
    radiance[scene.sky] = clouds[scene.sky, None] * np.array([0.97, 1.0, 1.04])
    return radiance


# ---- surfaces ------------------------------------------------------------------------------------


def _wet(
    scene: Scene,
    rng: np.random.Generator,
    radiance: np.ndarray,
    amount: float,
    mirror: float = 1.0,
) -> np.ndarray:
    """Wet ground: darker, and reflecting what is above the horizon, more so at grazing angles.

    A level surface reflects a ray upwards at the angle at which it arrives, so distant objects are
    mirrored at the horizon. The position of near ones is approximate.
    """
    height = scene.size[0]
    ground = _ground(scene)
    rows = np.clip(2 * scene.horizon - np.arange(height), 0, height - 1).astype(int)
    image = ndimage.gaussian_filter(radiance[rows], (0.02 * height, 0.004 * height, 0))
    unit = scene.rays / np.linalg.norm(scene.rays, axis=-1, keepdims=True)
    cosine = np.clip(unit[..., 1], 0, 1)
    fresnel = 0.02 + 0.98 * (1 - cosine) ** 5
    puddles = np.clip(1.6 * _field(rng, scene.size, 0.1) - 0.3, 0.15, 1)
    share = np.clip(mirror * amount * ground * puddles * fresnel, 0, 0.9)[..., None]
    darker = 1 - 0.45 * amount * ground[..., None]
    return radiance * darker * (1 - share) + image * share


def _upward(scene: Scene) -> np.ndarray:
    """How much surfaces face up, 0 to 1, from normals of the smoothed depth."""
    sigma = 0.004 * scene.size[0] + 0.7
    known = ndimage.gaussian_filter((~scene.sky).astype(float), sigma)
    inverse = ndimage.gaussian_filter(np.where(scene.sky, 0, 1 / scene.depth), sigma)
    smooth = np.where(scene.sky, 1 / _SKY, inverse / np.maximum(known, 1e-6))
    points = scene.rays / smooth[..., None]
    slope = (-0.5, 0.0, 0.5)
    across, down = (ndimage.correlate1d(points, slope, axis, mode="nearest") for axis in (1, 0))
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-12
    normal *= -np.sign((normal * scene.rays).sum(-1, keepdims=True))  # towards the camera
    upward = np.clip((-normal[..., 1] - 0.45) / 0.35, 0, 1)
    return upward * ~scene.sky


def _ground(scene: Scene) -> np.ndarray:
    """Level ground: surfaces facing up below the horizon, 0 to 1."""
    below = np.clip((scene.rays[..., 1] - 0.01) / 0.03, 0, 1)
    return ndimage.gaussian_filter(_upward(scene) * below, 0.004 * scene.size[0] + 0.5)


def _shading(radiance: np.ndarray) -> np.ndarray:
    """Light and shade of the clean image, as a smooth factor around 1."""
    luminance = ndimage.gaussian_filter(radiance @ LUMINANCE, 0.01 * len(radiance) + 0.5)
    return np.clip(luminance / (luminance.mean() + 1e-6), 0.4, 1.4)


def _looks_like_sky(image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Detects the sky: bright, even and far areas that reach the top of the image.

    Networks predict finite depth for the sky, so a depth threshold is not enough.
    """
    grey = image @ LUMINANCE
    slope = ndimage.gaussian_gradient_magnitude(grey, 1.0)
    bright = grey > max(float(np.quantile(grey, 0.6)), 90.0)
    even = (slope < 4.0) & bright & (depth >= np.quantile(depth, 0.7))
    labels, _ = ndimage.label(even)
    top = np.unique(labels[: max(1, len(image) // 40)])
    found = np.isin(labels, top[top > 0])
    return ndimage.binary_closing(found, iterations=1) | found


# ---- lens and sensor -----------------------------------------------------------------------------


def _noisy(rng: np.random.Generator, radiance: np.ndarray, photons: float) -> np.ndarray:
    """Photon noise with `photons` at white, amplifier noise, then in-camera smoothing."""
    variance = radiance.clip(0, 4) / photons + (1.2 / photons) ** 2
    noisy = radiance + np.sqrt(variance) * rng.normal(size=radiance.shape)
    return ndimage.gaussian_filter(noisy.clip(0), (0.4, 0.4, 0))


def _developed(radiance: np.ndarray) -> np.ndarray:
    """Soft highlight compression, then sRGB bytes. Values below 0.6 are unchanged."""
    over = (radiance - 0.6).clip(0)
    toned = np.minimum(radiance, 0.6) + 0.4 * over / (0.4 + over)
    return encoded(toned.clip(0))


def _linear(image: np.ndarray) -> np.ndarray:
    """sRGB bytes to linear radiance (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    table = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return table[image]


def _blurred(array: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [h, w] or [h, w, c]; wide blurs are computed on a coarser grid."""
    height, width = array.shape[:2]
    step = max(min(int(sigma / 4), height // 8, width // 8), 1)
    more = [(0, 0)] * (array.ndim - 2)
    padded = np.pad(array, [(0, -height % step), (0, -width % step), *more], mode="edge")
    rows, columns = padded.shape[0] // step, padded.shape[1] // step
    coarse = padded.reshape(rows, step, columns, step, *array.shape[2:]).mean((1, 3))
    coarse = ndimage.gaussian_filter(coarse, (sigma / step,) * 2 + (0,) * (array.ndim - 2))
    return resampling.resize(coarse, padded.shape[:2], "bilinear")[:height, :width]


def _field(rng: np.random.Generator, size: tuple[int, int], scale: float) -> np.ndarray:
    """Smooth random field [h, w], uniform in [0, 1]; `scale`: grain relative to the height."""
    sigma = max(scale * size[0], 1.0)
    field = _blurred(rng.normal(size=size), sigma)
    field += 0.5 * _blurred(rng.normal(size=size), sigma / 3) / 3
    ranks = field.ravel().argsort().argsort().reshape(size)
    return ranks / max(ranks.size - 1, 1)


def _points(rng: np.random.Generator, size: tuple[int, int], count: float) -> np.ndarray:
    """About `count` points of random strength, [h, w]."""
    points = np.zeros(size)
    number = rng.poisson(count)
    rows, columns = rng.integers(0, size[0], number), rng.integers(0, size[1], number)
    np.add.at(points, (rows, columns), rng.uniform(0.4, 1.0, number))
    return points


def _lines(
    rng: np.random.Generator,
    size: tuple[int, int],
    count: float,
    length: float,
    breadth: float,
    slant: float,
) -> np.ndarray:
    """About `count` parallel streaks, with value 1 at their centre, [h, w]."""
    half = int(np.ceil(length / 2))
    points = _points(rng, (size[0] + 2 * half, size[1]), count * (size[0] + 2 * half) / size[0])
    steps = np.arange(-half, half + 1)
    weights = np.exp(-((2 * steps / length) ** 4))
    threads = np.zeros_like(points)
    for step, weight in zip(steps, weights, strict=True):
        threads += weight * np.roll(points, (step, round(slant * step)), (0, 1))
    spread = max(breadth / 2, 0.35)
    threads = ndimage.gaussian_filter1d(threads, spread, axis=1) * spread * np.sqrt(2 * np.pi)
    return threads[half : half + size[0]]
