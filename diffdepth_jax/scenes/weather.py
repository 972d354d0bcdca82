"""Effects of air, lens and sensor: fog, rain, snow, glare, haloes, noise, exposure.

Works on linear radiance `[h w 3]`. Sizes of streaks and flakes scale with the image height, so that
larger images look the same.
"""

import numpy as np
from jaxtyping import Float, UInt8

from diffdepth_jax.scenes.layouts import Camera, Weather

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear sRGB


def hazy(
    radiance: Float[np.ndarray, "h w 3"],
    clarity: Float[np.ndarray, "h w"],
    airlight: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "h w 3"]:
    """Koschmieder's law (1924): objects fade into light scattered by the air.

    Closed form for a homogeneous medium lit from all directions: L = J t + A (1 - t).

    Args:
        radiance: J, in clear air.
        clarity: t = exp(-extinction * distance) in [0, 1], 0 for the sky.
        airlight: A, radiance of infinitely thick air.
    """
    clear = clarity[..., None]
    return radiance * clear + airlight * (1 - clear)


def developed(
    radiance: Float[np.ndarray, "h w 3"],
    glow: Float[np.ndarray, "h w 3"],
    camera: Camera,
    weather: Weather,
    to_sun: Float[np.ndarray, "3"] | None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The final image: exposure, effects of lens and air, noise, highlight compression, sRGB bytes.

    Args:
        radiance: radiance at the lens.
        glow: the part that comes directly from lamps.
        camera: the viewpoint.
        weather: the effects to add.
        to_sun: unit vector towards the sun, for glare.
    """
    rng = np.random.default_rng(weather.seed)
    luminance = (
        radiance - glow
    ) @ LUMINANCE  # lamps may be overexposed; exposure is for the street
    floor = 0.003 * luminance.mean() + 1e-9
    gain = weather.key / np.exp(np.mean(np.log(luminance + floor)))
    exposed = radiance * gain
    # Half-way to a grey mean, like cameras: otherwise, shade under a blue sky would look like dusk.
    mean = np.minimum(exposed, 1.0).mean(axis=(0, 1)) + 1e-6
    balance = np.sqrt(mean.mean() / mean)
    exposed = exposed * balance
    if weather.halo > 0:
        exposed = exposed + weather.halo * _halo(np.minimum(glow * gain * balance, 40.0))
    if weather.glare > 0 and to_sun is not None:
        exposed = exposed + weather.glare * _glare(camera, to_sun)
    if weather.snow > 0:
        exposed = _falling_snow(rng, exposed, weather.snow)
    if weather.rain > 0:
        exposed = _drops(rng, _streaks(rng, exposed, weather.rain), weather.rain)
    if weather.noise > 0:  # photon and amplifier noise
        deviation = np.sqrt(weather.noise**2 + weather.noise * 0.06 * exposed.clip(0, 2))
        exposed = (exposed + deviation * rng.normal(size=exposed.shape)).clip(0)
    toned = exposed * (1 + exposed / 9.0) / (1 + exposed)
    return encoded(toned)


def encoded(radiance: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Converts linear radiance, 1 for white, to sRGB bytes (IEC 61966-2-1)."""
    srgb = np.where(
        radiance <= 0.0031308, 12.92 * radiance, 1.055 * radiance.clip(1e-8) ** (1 / 2.4) - 0.055
    )
    return (srgb.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(down, right) offsets from the corner, wrapped, for drawing FFT kernels."""
    down = np.fft.fftfreq(height, 1 / height)
    right = np.fft.fftfreq(width, 1 / width)
    return np.meshgrid(down, right, indexing="ij")


def _convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Periodic convolution of `[h w]` with a kernel `[h w]` centred on its corner."""
    return np.fft.irfft2(np.fft.rfft2(image) * np.fft.rfft2(kernel), s=image.shape)


def _halo(glow: np.ndarray) -> np.ndarray:
    """Light of lamps `[h w 3]` spread around them, falling off with squared distance."""
    height, width = glow.shape[:2]
    padded = np.pad(glow, ((0, height), (0, width // 2), (0, 0)))
    down, right = _grid(*padded.shape[:2])
    core = 0.012 * height
    kernel = 1 / (1 + (down**2 + right**2) / core**2) ** 1.25
    kernel /= kernel.sum()
    spread = np.stack([_convolved(padded[..., i], kernel) for i in range(3)], axis=-1)
    return spread[:height, :width].clip(0)


def _glare(camera: Camera, to_sun: np.ndarray) -> np.ndarray:
    """Sun, aureole and veil `[h w 3]`; the veil falls off with the squared angle (Stiles,
    Holladay)."""
    rays = camera.rays()
    toward = rays @ to_sun / np.linalg.norm(rays, axis=-1)
    angle = np.degrees(np.arccos(toward.clip(-1, 1)))
    warm = np.array([1.0, 0.86, 0.62])
    veil = 22.0 / (angle**2 + 6.0) + 0.9 / (1 + angle / 9.0) ** 2
    disc = 40.0 * np.exp(-((angle / 1.1) ** 4))
    # Star rays from diffraction at the aperture's blades.
    height, width = camera.size
    x, y, z = camera.orientation.T @ to_sun
    if z <= 0:
        return (veil + disc)[..., None] * warm
    column, row = (camera.intrinsics @ np.array([x, y, z]) / z)[:2]
    down, right = np.mgrid[:height, :width]
    turn = np.arctan2(down - row, right - column)
    star = 2.2 * np.abs(np.cos(3 * turn)) ** 40 / (1 + angle / 2.5) ** 1.6
    glare = (veil + disc + star)[..., None] * warm
    # Ghosts: images of the aperture reflected between lenses, across the image centre.
    middle = camera.intrinsics[:2, 2]
    for place, size, colour in (
        (-0.35, 0.06, (0.10, 0.22, 0.08)),
        (-0.7, 0.10, (0.20, 0.09, 0.05)),
        (0.45, 0.035, (0.06, 0.12, 0.22)),
    ):
        centre = middle + place * (np.array([column, row]) - middle)
        distance = np.hypot(right - centre[0], down - centre[1]) / (size * height * 2)
        glare += np.clip(1.5 - 1.5 * distance, 0, 1)[..., None] * np.array(colour)
    return glare


def _scattered(
    rng: np.random.Generator, size: tuple[int, int], count: float, kernel: np.ndarray
) -> np.ndarray:
    """About `count` copies of a kernel in [0, 1], with random strengths and positions."""
    points = (rng.random(size) < count / (size[0] * size[1])) * rng.uniform(0.25, 1.0, size)
    return _convolved(points, kernel).clip(0, 1)


def _streaks(rng: np.random.Generator, image: np.ndarray, amount: float) -> np.ndarray:
    """Falling rain: bright streaks, few and long nearby, many and short far away."""
    height, width = image.shape[:2]
    down, right = _grid(height, width)
    slant = rng.uniform(-0.16, 0.16)
    light = np.quantile(image @ LUMINANCE, 0.9) + 0.05
    for count, length, breadth, strength in (
        (700, 0.05, 0.004, 0.12),
        (260, 0.12, 0.006, 0.17),
        (50, 0.28, 0.009, 0.16),
    ):
        across = (right - slant * down) / max(breadth * height, 0.42)
        along = down / (length * height / 2)
        kernel = np.exp(-(across**2)) * np.exp(-(along**4))
        share = width / height / 3.33  # the counts above are for 96x320
        layer = _scattered(rng, (height, width), amount * count * share, kernel)
        veil = (strength * layer)[..., None]
        image = image * (1 - veil) + light * 1.25 * veil
    return image


def _drops(rng: np.random.Generator, image: np.ndarray, amount: float) -> np.ndarray:
    """Drops on the lens: each shows the scene upside down and blurred, like a small ball lens."""
    height, width = image.shape[:2]
    row, column = np.mgrid[:height, :width].astype(float)
    blurred = image
    for shift in (1, 2, 3):
        blurred = (blurred + sum(np.roll(blurred, s, axis) for s in (-shift, shift)
                                 for axis in (0, 1))) / 5  # fmt: skip
    result = image.copy()
    for _ in range(rng.poisson(9 * amount * width / height / 3.33)):
        centre = rng.uniform(0, height), rng.uniform(0, width)
        radius = height * rng.gamma(3.0, 0.011) + 0.5
        down, right = (row - centre[0]) / radius, (column - centre[1]) / radius
        reach = np.hypot(down, right * 1.1)
        inside = np.clip((1.0 - reach) * radius / 1.2, 0, 1)[..., None] * 0.9
        source_row = np.clip(centre[0] - down * height * 0.3, 0, height - 1).astype(int)
        source_column = np.clip(centre[1] - right * height * 0.3, 0, width - 1).astype(int)
        shade = (1.08 - 0.4 * reach.clip(0, 1) ** 3)[..., None]
        result = result * (1 - inside) + blurred[source_row, source_column] * shade * inside
    return result


def _falling_snow(rng: np.random.Generator, image: np.ndarray, amount: float) -> np.ndarray:
    """Flakes: white dots, slightly blurred and streaked; few and large nearby."""
    height, width = image.shape[:2]
    down, right = _grid(height, width)
    slant = rng.uniform(-0.5, 0.5)
    white = max(np.quantile(image @ LUMINANCE, 0.9), 0.3) * 1.15
    for count, size, strength in ((900, 0.005, 0.55), (260, 0.011, 0.6), (36, 0.026, 0.5)):
        size = max(size * height, 0.45)
        across, along = (right - slant * down) / size, down / (1.6 * size)
        kernel = np.exp(-(across**2) - along**2)
        share = width / height / 3.33
        layer = _scattered(rng, (height, width), amount * count * share, kernel)
        veil = (strength * layer)[..., None]
        image = image * (1 - veil) + white * veil
    return image
