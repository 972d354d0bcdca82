"""Blocks of flats, houses and halls.

A building is a list of meshes in its own axes, in metres: x right, y forward, z up, and the origin
at the middle of its front. The front faces -y, towards the street.
"""

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street import surfaces
from diffdepth_jax.scenes.street.palette import Palette, one_of


def _gable_roof(
    width: float,
    depth: float,
    base: float,
    rise: float,
    tiles: Material,
    gable: Material,
    across: bool,
) -> list[Mesh]:
    """A pitched roof over x in [-w/2, w/2], y in [0, d]; its ridge runs along y if `across`."""
    eave = 0.45
    half, near, far = width / 2, 0.0, depth
    run = half if across else depth / 2
    slope = rise / run
    drop, top = base - eave * slope, base + rise
    length = (depth if across else width) / 2
    size = 2.0  # metres per repeat of the tiles
    v = np.hypot(run + eave, rise + eave * slope) / size
    if across:
        left = [(-half - eave, far + eave, drop), (-half - eave, near - eave, drop),
                (0, near - eave, top), (0, far + eave, top)]  # fmt: skip
        right = [(half + eave, near - eave, drop), (half + eave, far + eave, drop),
                 (0, far + eave, top), (0, near - eave, top)]  # fmt: skip
        gables = [
            [(-half, near, base), (half, near, base), (0, near, top)],
            [(half, far, base), (-half, far, base), (0, far, top)],
        ]
    else:
        middle = depth / 2
        left = [(-half - eave, near - eave, drop), (half + eave, near - eave, drop),
                (half + eave, middle, top), (-half - eave, middle, top)]  # fmt: skip
        right = [(half + eave, far + eave, drop), (-half - eave, far + eave, drop),
                 (-half - eave, middle, top), (half + eave, middle, top)]  # fmt: skip
        gables = [
            [(half, near, base), (half, far, base), (half, middle, top)],
            [(-half, far, base), (-half, near, base), (-half, middle, top)],
        ]
    u = (2 * length + 2 * eave) / size
    meshes = [shapes.quad(corners, tiles, (0, 0, u, v)) for corners in (left, right)]
    for corners in gables:
        span = np.linalg.norm(np.subtract(corners[1], corners[0])) / materials.WALL_TEXTURE_SIZE
        uvs = np.array([(0, 0), (span, 0), (span / 2, rise / materials.WALL_TEXTURE_SIZE)])
        meshes.append(Mesh(np.asarray(corners, float), np.array([[0, 1, 2]]), uvs, gable))
    return meshes


def _facade(
    rng: np.random.Generator,
    span: float,
    floors: int,
    storey: float,
    glazing: Material,
    trim: Material,
    first_floor: int,
    pane: tuple[float, float],
    pitch: float,
) -> list[Mesh]:
    """Windows with sills on a wall over x in [-span/2, span/2] at y = 0, facing -y."""
    count = max(int((span - 0.6) / pitch), 1)
    width, height = pane
    meshes = []
    for floor in range(first_floor, floors):
        sill = floor * storey + (storey - height) * 0.45
        for i in range(count):
            x = (i + 0.5 - count / 2) * span / count
            left, right, top = x - width / 2, x + width / 2, sill + height
            corners = [(left, -0.03, sill), (right, -0.03, sill),
                       (right, -0.03, top), (left, -0.03, top)]  # fmt: skip
            uv = surfaces.atlas_uv(int(rng.integers(surfaces.ATLAS**2)))
            meshes.append(shapes.quad(corners, glazing, uv))
            meshes.append(shapes.box((width + 0.2, 0.16, 0.09), (x, -0.06, sill - 0.05), trim))
            meshes.append(
                shapes.box((width + 0.24, 0.10, 0.12), (x, -0.04, sill + height + 0.06), trim)
            )
    return meshes


def building(
    rng: np.random.Generator, palette: Palette, width: float, depth: float, kind: str
) -> list[Mesh]:
    """A "block" of flats, a "house" or a "hall", front at y = 0 facing -y, centred in x."""
    storey = rng.uniform(2.8, 3.4)
    if kind == "block":
        floors = int(rng.integers(3, 7))
        style = ("brick", "plaster", "plaster", "stone")[rng.integers(4)]
    elif kind == "house":
        floors = int(rng.integers(1, 3))
        style = ("brick", "plaster", "plaster")[rng.integers(3)]
    elif kind == "hall":
        floors, storey = int(rng.integers(1, 3)), rng.uniform(4.0, 5.5)
        style = ("panel", "panel", "brick")[rng.integers(3)]
    else:
        raise ValueError(f"unknown kind of building {kind!r}: choose block, house or hall")
    surface = one_of(rng, palette.walls[style])
    glazing = one_of(rng, palette.windows)
    trim = materials.plain("trim", np.array([0.84, 0.82, 0.77]) * rng.uniform(0.5, 1.08))
    height = floors * storey + (0.4 if kind == "block" else 0.0)
    meshes = [
        shapes.box(
            (width, depth, height + 2),
            (0, depth / 2, height / 2 - 1),
            surface,
            materials.WALL_TEXTURE_SIZE,
        ),
        shapes.box((width + 0.1, depth + 0.1, 0.5), (0, depth / 2, 0.2), palette.concrete),
    ]
    pane = (rng.uniform(0.9, 1.4), rng.uniform(1.2, 1.7))
    pitch = pane[0] + rng.uniform(0.8, 1.6)
    if kind == "hall":
        pane, pitch = (2.2, 1.0), 4.0
    shop = kind == "block" and rng.random() < 0.6
    first = 1 if shop or kind == "hall" else 0
    meshes += _facade(rng, width, floors, storey, glazing, trim, first, pane, pitch)
    for side in (-1, 1):  # side walls
        flank = _facade(rng, depth, floors, storey, glazing, trim, first, pane, pitch * 1.6)
        turn = shapes.rotation(yaw=side * np.pi / 2)
        meshes += shapes.moved(flank, (side * width / 2, depth / 2, 0), turn)

    meshes += _openings(rng, palette, kind, width, storey, shop)
    if kind == "block":
        meshes += _balconies(palette, trim, width, storey, floors if rng.random() < 0.3 else 0)
        meshes.append(shapes.box((width + 0.5, depth + 0.5, 0.35), (0, depth / 2, height), trim))
    if kind == "hall":
        meshes.append(shapes.box((width + 0.3, depth + 0.3, 0.5), (0, depth / 2, height), trim))
    elif kind == "house" or rng.random() < 0.45:
        eaves = height + (0.17 if kind == "block" else 0)
        turned = kind == "house" and bool(rng.random() < 0.4)
        meshes += _roof_and_chimney(rng, palette, width, depth, height, eaves, surface, turned)
    return meshes


def _openings(
    rng: np.random.Generator, palette: Palette, kind: str, width: float, storey: float, shop: bool
) -> list[Mesh]:
    """Doors, gates and shop windows of the front, with awnings."""
    meshes: list[Mesh] = []

    def opening(x: float, span: float, tall: float, row: int) -> Mesh:
        corners = [(x - span / 2, -0.05, 0.1), (x + span / 2, -0.05, 0.1),
                   (x + span / 2, -0.05, tall), (x - span / 2, -0.05, tall)]  # fmt: skip
        picture = row * surfaces.ATLAS + int(rng.integers(surfaces.ATLAS))
        return shapes.quad(corners, palette.doors, surfaces.atlas_uv(picture))

    if shop:
        count = max(int(width / 4), 1)
        for i in range(count):
            x = (i + 0.5 - count / 2) * width / count
            meshes.append(opening(x, width / count - 0.7, storey * 0.86, int(rng.integers(2, 4))))
            if rng.random() < 0.4:  # awning
                colour = materials.plain("cloth", materials.muted(rng, 0.25, 0.8))
                half, top = width / count / 2 - 0.3, storey * 0.9
                meshes.append(
                    shapes.quad(
                        [(x - half, -1.2, top - 0.6), (x + half, -1.2, top - 0.6),
                         (x + half, -0.02, top), (x - half, -0.02, top)],
                        colour,
                    )
                )  # fmt: skip
    elif kind == "hall":
        for x in np.arange(-width / 2 + 3, width / 2 - 2, 6.0):
            meshes.append(opening(x, 3.6, 3.4, 1))
    else:
        meshes.append(opening(rng.uniform(-0.3, 0.3) * width, 1.1, 2.2, 0))
        if kind == "house" and rng.random() < 0.4:
            meshes.append(opening(width * 0.36, 2.4, 2.2, 1))
    return meshes


def _balconies(
    palette: Palette, trim: Material, width: float, storey: float, floors: int
) -> list[Mesh]:
    """Balconies on all floors but the lowest."""
    meshes = []
    for floor in range(1, floors):
        for x in np.arange(-width / 2 + 2, width / 2 - 1, 4.5):
            z = floor * storey
            meshes.append(shapes.box((2.4, 1.1, 0.14), (x, -0.55, z), palette.concrete))
            meshes.append(shapes.box((2.4, 0.05, 0.9), (x, -1.08, z + 0.5), trim))
            for side in (-1, 1):
                meshes.append(shapes.box((0.05, 1.1, 0.9), (x + side * 1.18, -0.55, z + 0.5), trim))
    return meshes


def _roof_and_chimney(
    rng: np.random.Generator,
    palette: Palette,
    width: float,
    depth: float,
    height: float,
    eaves: float,
    surface: Material,
    across: bool,
) -> list[Mesh]:
    """A pitched roof on a building of this `height`, starting at its `eaves`."""
    run = width / 2 if across else depth / 2
    rise = min(run * rng.uniform(0.5, 1.0), 5.0)
    tiles = one_of(rng, palette.roofs)
    chimney = (rng.uniform(-0.3, 0.3) * width, depth / 2 - 0.6, height + rise * 0.8)
    return [
        *_gable_roof(width, depth, eaves, rise, tiles, surface, across),
        shapes.box((0.7, 0.7, 2.2), chimney, surface, materials.WALL_TEXTURE_SIZE),
    ]
