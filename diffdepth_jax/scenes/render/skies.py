"""Sun, sky and clouds as lights."""

import mitsuba as mi
import mitsuba.scalar_rgb as rgb
import numpy as np

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.layouts import Layout, Sky
from diffdepth_jax.scenes.render import parts


def sun_and_sky(sky: Sky) -> tuple[dict | None, dict]:
    """Sun and sky as Mitsuba lights.

    The sun is a directional light, or None if clouds hide it; sky, clouds and lit ground are an
    environment map.

    Sun and clear sky are from Mitsuba's `sunsky` (Hosek and Wilkie's model). Baked into a map, they
    render several times faster, and clouds can be added.
    """
    to_sun = sky.to_sun
    interaction = mi.SurfaceInteraction3f()

    def radiance(emitter: rgb.Emitter, direction: np.ndarray) -> np.ndarray:
        interaction.wi = (-direction).tolist()
        return np.array(emitter.eval(interaction))

    clear = {"type": "sunsky", "sun_direction": to_sun.tolist(), "turbidity": sky.turbidity}
    clear_sky, with_sun = mi.load_dict(clear | {"sun_scale": 0.0}), mi.load_dict(clear)
    dome = _upsampled(
        np.array([[radiance(clear_sky, d) for d in row] for row in _directions(16, 64)])
    )
    disc = 2 * np.pi * (1 - np.cos(np.radians(0.5358 / 2)))  # sr; the sun's solid angle in `sunsky`
    sun = (radiance(with_sun, to_sun) - radiance(clear_sky, to_sun)) * disc

    directions = _directions(*dome.shape[:2])
    cover, thickness = _clouds(sky, directions)
    sun = sun * (1 - np.clip((sky.cloudiness - 0.45) / 0.3, 0, 1))
    mean_sky = dome.mean(axis=(0, 1))
    grey = (
        mean_sky.mean() * np.array([0.98, 1.0, 1.04]) * (0.35 + 0.65 * mean_sky / mean_sky.mean())
    )
    lit = grey * 0.9 + 0.09 * sun
    cloud = lit * (1.0 - 0.45 * thickness[..., None])
    dome = dome * (1 - cover[..., None]) + cloud * cover[..., None]
    weight = directions[..., 2:] / directions[..., 2].sum()
    ground = 0.2 * (np.pi * (dome * weight).sum(axis=(0, 1)) + sun * to_sun[2]) / np.pi
    globe = np.concatenate([dome, np.broadcast_to(ground, dome.shape)]).astype(np.float32)
    direct = {
        "type": "directional",
        "direction": (-to_sun).tolist(),
        "irradiance": parts.uniform(sun),
    }
    return (
        direct if sun.any() else None,
        {
            "type": "envmap",
            "bitmap": mi.Bitmap(globe),
            "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], 90),
        },
    )


def _upsampled(coarse: np.ndarray, factor: int = 8) -> np.ndarray:
    """Upsamples a smooth map `[h w 3]` of the upper half by `factor` in both directions."""
    height, width = coarse.shape[:2]
    row = np.clip((np.arange(height * factor) + 0.5) / factor - 0.5, 0, height - 1)
    column = (np.arange(width * factor) + 0.5) / factor - 0.5
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = (row - top)[:, None, None], (column - left)[None, :, None]
    below, beside = np.minimum(top + 1, height - 1), (left + 1) % width
    upper = coarse[top][:, left] * (1 - right) + coarse[top][:, beside] * right
    lower = coarse[below][:, left] * (1 - right) + coarse[below][:, beside] * right
    return upper * (1 - down) + lower * down


def _directions(height: int, width: int) -> np.ndarray:
    """`[h w 3]` unit directions of a map of the upper half: zenith first, azimuth 0 is ahead."""
    polar = (np.arange(height) + 0.5) / height * np.pi / 2
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi
    polar, azimuth = np.meshgrid(polar, azimuth, indexing="ij")
    across = np.sin(polar)
    return np.stack([across * np.sin(azimuth), across * np.cos(azimuth), np.cos(polar)], axis=-1)


def _clouds(sky: Sky, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and thickness of clouds, `[h w]` in [0, 1], on a flat layer in perspective."""
    size = 512
    rng = np.random.default_rng(sky.cloud_seed)
    field = materials.noise(rng, size, size, slope=1.9, finest=0.25)
    layer = directions[..., :2] / (directions[..., 2:] + 0.12) * 45
    column, row = (layer[..., i].astype(int) % size for i in range(2))
    level = np.quantile(field, 1 - sky.cloudiness)
    height = field[row, column] - level
    return np.clip(height / 0.5, 0, 1) ** 0.7, np.clip(height / 1.6, 0, 1)


def airlight(layout: Layout, sky: dict) -> np.ndarray:
    """Airlight radiance `[3]`: that of the sky at the horizon (Koschmieder, 1924)."""
    if layout.sky is None:
        return np.asarray(layout.ambient)
    globe = np.array(sky["bitmap"])
    rows = len(globe) // 2
    return globe[rows - max(rows // 6, 1) : rows].mean(axis=(0, 1))


def mean_radiance(layout: Layout, sun: dict | None, sky: dict) -> float:
    """Radiance of a white surface under average light, accounting for shadows."""
    if layout.sky is None:
        return float(np.mean(layout.ambient)) + 0.01
    upper = np.array(sky["bitmap"])
    light = upper[: len(upper) // 2].mean()
    if sun is not None:
        light += 0.5 * np.mean(sun["irradiance"]["value"]) / np.pi
    return 0.45 * float(light)
