"""Adverse conditions of a street: the same geometry and camera with other light and weather.

A condition is a function `(layout, rng) -> layout`. It changes materials by role, light and
weather, and may append meshes that lie on existing ones. Camera and geometry stay the same, so
depth equals that of the clear scene.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from diffdepth_jax.scenes import shapes
from diffdepth_jax.scenes.layouts import Camera, Condition, Lamp, Layout, Sky, Weather, rgb
from diffdepth_jax.scenes.materials import GROUND, Material, noise, to_bytes
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street import surfaces


def clear(layout: Layout, rng: np.random.Generator) -> Layout:
    """The scene as drawn."""
    del rng
    return layout


def fog(layout: Layout, rng: np.random.Generator) -> Layout:
    """Fog with 25 to 200 m visibility under a grey sky, with lights switched on.

    Visibility is the meteorological optical range, at which contrast falls to 5% (WMO, guide no.
    8): extinction = ln 20 / visibility.
    """
    sight = np.exp(rng.uniform(np.log(25), np.log(200)))
    weather = Weather(
        extinction=float(np.log(20) / sight), halo=0.12, key=rng.uniform(0.4, 0.6), seed=_seed(rng)
    )
    return _with_lights_on(replace(layout, sky=_overcast(rng), weather=weather), beam=1.2)


def rain(layout: Layout, rng: np.random.Generator) -> Layout:
    """Rain: a dark sky, wet reflecting ground, streaks, drops on the lens, lights switched on."""
    amount = rng.uniform(0.6, 1.0)
    wet = dict.fromkeys(GROUND, _wet)
    weather = Weather(
        extinction=rng.uniform(0.004, 0.010), rain=amount, halo=0.10,
        key=rng.uniform(0.09, 0.14), noise=0.004, seed=_seed(rng),
    )  # fmt: skip
    layout = replace(_repainted(layout, wet, rng), sky=_overcast(rng), weather=weather)
    return _with_lights_on(layout, beam=1.2)


def snow(layout: Layout, rng: np.random.Generator) -> Layout:
    """Snow on surfaces facing up, wheel tracks on the road, flakes, and a white sky."""
    weather = Weather(
        extinction=rng.uniform(0.004, 0.012), snow=rng.uniform(0.5, 1.0),
        key=rng.uniform(0.40, 0.55), seed=_seed(rng),
    )  # fmt: skip
    cover = _snow(rng)
    layout = _repainted(layout, {"road": _snowed_road, "foliage": _wintry}, rng)
    meshes, covers = [], []
    for mesh in layout.meshes:
        if mesh.material.role in _NEVER_SNOWED:
            meshes.append(mesh)
            continue
        upward = _face_normals(mesh)[:, 2] > (0.35 if mesh.material.role == "foliage" else 0.55)
        if upward.all():
            meshes.append(replace(mesh, material=cover))
            continue
        meshes.append(replace(mesh, faces=mesh.faces[~upward]))
        if upward.any():
            covers.append(replace(mesh, faces=mesh.faces[upward], material=cover))
    return replace(layout, meshes=(*meshes, *covers), sky=_overcast(rng), weather=weather)


def glare(layout: Layout, rng: np.random.Generator) -> Layout:
    """A low sun in view: long shadows towards the camera, and veiling glare."""
    sun = _low_sun(layout, rng)
    weather = Weather(glare=rng.uniform(0.7, 1.1), key=rng.uniform(0.16, 0.22), seed=_seed(rng))
    return replace(layout, sky=sun, weather=weather)


def night(layout: Layout, rng: np.random.Generator) -> Layout:
    """Night: own headlights, street lamps, others' headlights and tail lights, lit windows."""
    street_lamps = _lamps(layout, rng)
    weather = Weather(
        halo=0.08, key=rng.uniform(0.03, 0.045), noise=rng.uniform(0.004, 0.009), seed=_seed(rng)
    )
    layout = _with_lights_on(layout, beam=30.0)
    tone = np.array([1.0, 0.72, 0.42]) if rng.random() < 0.6 else np.array([0.95, 1.0, 0.95])
    share, seed = rng.uniform(0.15, 0.5), _seed(rng)

    def lit(material: Material, _: np.random.Generator) -> Material:
        own = np.random.default_rng([seed, int(material.texture.sum())])
        return _lit_windows(own, material, share)

    changes = {"window": lit, "door": _lit_shops, "lamp": _shine(tone, 12.0)}
    ambient = rgb(np.array([0.0045, 0.005, 0.0075]) * rng.uniform(0.6, 2.0))
    return replace(
        _repainted(layout, changes, rng), sky=None, ambient=ambient, weather=weather,
        lamps=(*_own_headlights(layout.camera), *street_lamps, *_others_headlights(layout)),
    )  # fmt: skip


def night_rain(layout: Layout, rng: np.random.Generator) -> Layout:
    """Night and rain together."""
    dark, amount = night(layout, rng), rng.uniform(0.6, 1.0)
    weather = replace(dark.weather, rain=amount, extinction=rng.uniform(0.004, 0.010), halo=0.2)
    return replace(_repainted(dark, dict.fromkeys(GROUND, _wet), rng), weather=weather)


CONDITIONS: Mapping[str, Condition] = {
    "clear": clear, "night": night, "fog": fog, "rain": rain, "snow": snow, "glare": glare,
    "night-rain": night_rain,
}  # fmt: skip


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _overcast(rng: np.random.Generator) -> Sky:
    return Sky(
        sun_elevation=float(rng.uniform(0.4, 0.9)),
        sun_azimuth=float(rng.uniform(-np.pi, np.pi)),
        turbidity=6.0,
        cloudiness=1.0,
        cloud_seed=_seed(rng),
    )


def _repainted(
    layout: Layout,
    changes: Mapping[str, Callable[[Material, np.random.Generator], Material]],
    rng: np.random.Generator,
) -> Layout:
    """Changes materials with the given roles; shared materials stay shared."""
    done: dict[int, Material] = {}
    meshes = []
    for mesh in layout.meshes:
        material = mesh.material
        if material.role in changes:
            if id(material) not in done:
                done[id(material)] = changes[material.role](material, rng)
            mesh = replace(mesh, material=done[id(material)])
        meshes.append(mesh)
    return replace(layout, meshes=tuple(meshes))


def _wet(material: Material, rng: np.random.Generator) -> Material:
    """Darker, as water fills the pores (albedo about halved), and glossy."""
    linear = (material.texture / 255.0) ** 2.2 * rng.uniform(0.4, 0.55)
    return replace(material, texture=to_bytes(linear ** (1 / 2.2)), gloss=rng.uniform(0.90, 0.98))


def _snow(rng: np.random.Generator) -> Material:
    field = noise(rng, 128, 128, slope=1.3)
    white = np.array([0.90, 0.92, 0.95]) * (1 + 0.025 * field[..., None])
    return Material("snow", to_bytes(white))


_NEVER_SNOWED = (
    "road",
    "glass",
    "window",
    "cloth",
    "skin",
    "beam",
    "headlight",
    "taillight",
    "lamp",
)


def _snowed_road(material: Material, rng: np.random.Generator) -> Material:
    """Snow on the road, thin and dirty in the wheel tracks."""
    rows, columns = material.texture.shape[:2]
    across = np.arange(columns) / surfaces.ROAD_PIXELS  # metres
    track = np.cos(2 * np.pi * (across - rng.uniform(0, 0.4)) / 1.65)  # two in a lane of 3.3 m
    ragged = 0.3 * noise(rng, rows, columns, slope=0.9)
    bare = np.clip(1.6 * (track[None, :] - rng.uniform(-0.1, 0.6) + ragged), 0, 1)[..., None]
    white = 0.88 + 0.03 * noise(rng, rows, columns, slope=1.0)[..., None]
    slush = 0.6 * material.texture / 255.0 + 0.22
    image = bare * slush + (1 - bare) * white * np.array([0.98, 1.0, 1.03])
    return replace(material, texture=to_bytes(image))


def _wintry(material: Material, rng: np.random.Generator) -> Material:
    """Brown, dull leaves."""
    del rng
    grey = material.texture.mean(axis=-1, keepdims=True)
    brown = grey * np.array([1.0, 0.88, 0.72]) * 0.8
    return replace(material, texture=(0.2 * material.texture + 0.8 * brown).astype(np.uint8))


def _face_normals(mesh: Mesh) -> np.ndarray:
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    normals = np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)


def _shine(colour: np.ndarray, radiance: float) -> Callable:
    def shining(material: Material, rng: np.random.Generator) -> Material:
        del rng
        emission = np.broadcast_to(to_bytes(np.asarray(colour)), (2, 2, 3)).copy()
        return replace(material, emission=emission, radiance=radiance)

    return shining


def _with_lights_on(layout: Layout, beam: float) -> Layout:
    """Switches on traffic lights and lights of moving cars; headlights have radiance `beam`."""

    def signal(material: Material, rng: np.random.Generator) -> Material:
        bright = material.texture.max() > 120  # only one of the three is lit
        return (
            _shine(material.texture[0, 0] / 255.0, 0.15 * beam)(material, rng)
            if bright
            else material
        )

    return _repainted(
        layout,
        {
            "beam": _shine(np.array([1.0, 0.96, 0.88]), beam),
            "taillight": _shine(np.array([1.0, 0.05, 0.03]), 0.1 * beam),
            "signal": signal,
        },
        np.random.default_rng(0),
    )


def _lit_windows(rng: np.random.Generator, material: Material, share: float) -> Material:
    """Lights behind a random fraction of the atlas's windows."""
    size = material.texture.shape[0] // surfaces.ATLAS
    emission = np.zeros_like(material.texture)
    for index in range(surfaces.ATLAS**2):
        if rng.random() < share:
            row, column = divmod(index, surfaces.ATLAS)
            cell = np.s_[row * size : (row + 1) * size, column * size : (column + 1) * size]
            warm = np.array([1.0, rng.uniform(0.70, 0.92), rng.uniform(0.35, 0.75)])
            picture = material.texture[cell] / 255.0
            inside = 0.55 + 0.45 * picture.mean(axis=-1, keepdims=True)
            bright = warm * inside * rng.uniform(0.5, 1.0)
            frame = np.ones((size, size, 1))
            frame[4:-4, 4:-4] = 0.0  # frames stay dark
            emission[cell] = to_bytes(bright * (1 - frame))
    return replace(material, emission=emission, radiance=0.8)


def _lit_shops(material: Material, rng: np.random.Generator) -> Material:
    """Shop windows (the lower half of the atlas of doors) lit from inside."""
    half = material.texture.shape[0] // 2
    emission = np.zeros_like(material.texture)
    goods = material.texture[half:] / 255.0
    emission[half:] = to_bytes((0.35 + 0.65 * goods) * np.array([1.0, 0.93, 0.80]))
    return replace(material, emission=emission, radiance=float(rng.uniform(0.6, 1.2)))


def _quads(layout: Layout, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Centres and unit normals, each `[n 3]`, of the quadrilaterals with a role."""
    centres, normals = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for mesh in layout.meshes:
        if mesh.material.role == role:
            centres.append(mesh.vertices.reshape(-1, 4, 3).mean(axis=1))
            normals.append(_face_normals(mesh)[::2])
    return np.concatenate(centres), np.concatenate(normals)


def _ahead(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Distance in front of the camera in metres, `[n]`."""
    return (points - camera.position) @ camera.orientation[:, 2]


def _lamps(layout: Layout, rng: np.random.Generator, most: int = 8) -> list[Lamp]:
    """The nearest street lamps, pointing down."""
    centres, normals = _quads(layout, "lamp")
    centres = centres[normals[:, 2] < -0.9]
    ahead = _ahead(layout.camera, centres)
    centres = centres[(ahead > -15) & (ahead < 100)]
    nearest = np.argsort(np.linalg.norm(centres - layout.camera.position, axis=1))[:most]
    strength = rng.uniform(240.0, 480.0)
    tone = np.array([1.0, 0.74, 0.45]) if rng.random() < 0.6 else np.array([0.95, 1.0, 0.95])
    return [
        Lamp(
            position=rgb(centres[i] - np.array([0, 0, 0.05])),
            direction=(0.0, 0.0, -1.0),
            intensity=rgb(strength * tone),
            cutoff=np.radians(78.0),
            beam=np.radians(50.0),
        )
        for i in nearest
    ]


def _own_headlights(camera: Camera) -> list[Lamp]:
    """Dipped headlights of the car that carries the camera, 0.65 m above the road."""
    vehicle = camera.orientation @ camera.mount.T  # the level vehicle's axes in world coordinates
    height = 1.0
    return [
        Lamp(
            position=tuple(camera.position + vehicle @ np.array([side * 0.65, 1.6, -height])),
            direction=tuple(vehicle @ np.array([0.04 * side, 1.0, -0.035])),
            intensity=(680.0, 656.0, 592.0),
            cutoff=np.radians(30.0),
            beam=np.radians(4.0),
        )
        for side in (-1.0, 1.0)
    ]


def _others_headlights(layout: Layout, most: int = 6) -> list[Lamp]:
    """Headlights of the nearest moving cars."""
    centres, normals = _quads(layout, "beam")
    ahead = _ahead(layout.camera, centres)
    near = np.nonzero((ahead > 1) & (ahead < 70))[0]
    return [
        Lamp(
            position=tuple(centres[i] + 0.05 * normals[i]),
            direction=tuple(normals[i] + np.array([0, 0, -0.05])),
            intensity=(480.0, 464.0, 420.0),
            cutoff=np.radians(28.0),
            beam=np.radians(4.0),
        )
        for i in near[np.argsort(ahead[near], kind="stable")][:most]
    ]


def _low_sun(layout: Layout, rng: np.random.Generator, tries: int = 24) -> Sky:
    """A sun within the image, in front of open sky if possible."""
    camera = layout.camera
    height, width = camera.size
    sun = None
    for _ in range(tries):
        pixel = np.array([rng.uniform(0.2, 0.8) * width, rng.uniform(0.05, 0.45) * height, 1.0])
        toward = camera.orientation @ np.linalg.inv(camera.intrinsics) @ pixel
        toward /= np.linalg.norm(toward)
        elevation = float(np.arcsin(toward[2]))
        if not np.radians(2.0) < elevation < np.radians(25.0):
            continue
        sun = Sky(
            sun_elevation=elevation,
            sun_azimuth=float(np.arctan2(toward[0], toward[1])),
            turbidity=float(rng.uniform(2.5, 5.0)),
            cloudiness=float(rng.uniform(0.0, 0.3)),
            cloud_seed=_seed(rng),
        )
        if not shapes.blocked(layout.meshes, camera.position, toward):
            break
    if sun is None:  # the camera looks down or the road climbs: above the image
        forward = camera.orientation[:, 2]
        sun = Sky(np.radians(12.0), float(np.arctan2(forward[0], forward[1])), 3.0, 0.1, _seed(rng))
    return sun
