"""Procedural table-tops: bottles, vases, bowls, books and fruit on a table in a furnished room.

A layout is drawn from a generator alone, so one seed gives one scene. The table stands about the
world's origin, the camera south of it (y < 0), looking north. The walls have no ceiling: the light
from above is the layout's ambient light.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes import tabletop_materials as surfaces
from diffdepth_jax.scenes import tabletop_objects as objects
from diffdepth_jax.scenes.layouts import RGB, Camera, Layout, Panel, Weather, pinhole
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh

Corners = Float[np.ndarray, "n 2"]  # of a convex polygon on the table, in order

GAP = 0.008  # least distance between things on the table, metres


def tabletop(rng: np.random.Generator, size: tuple[int, int], focal: float) -> Layout:
    """A random table-top and the room around it.

    Args:
        rng: decides everything; equal generators give equal layouts.
        size: (height, width) of the picture in pixels.
        focal: focal length over the picture's width.
    """
    height = rng.uniform(0.68, 0.80)
    table, inside, reach = _table(rng, height)
    things = [kind(rng) for kind in _kinds(rng)]
    standing = arrange(rng, things, inside, spread=rng.uniform(0.10, 0.18))
    turn = shapes.rotation(yaw=rng.uniform(-0.5, 0.5))
    table = shapes.moved(table, (0, 0, 0), turn)
    standing = [shapes.moved(thing, (0, 0, height), turn) for thing in standing]
    camera = _camera(rng, size, focal, standing, height)
    room, panels = _room(rng, camera, reach)
    bright = 0.02 + 0.2 * rng.random() ** 2
    tint = np.array([1.0, 1.0, 1.0]) + rng.uniform(-0.08, 0.08) * np.array([1, 0, -1])
    meshes = [mesh for thing in standing for mesh in thing]
    return Layout(
        meshes=tuple(shapes.merged([*meshes, *table, *room])),
        camera=camera,
        sky=None,
        ambient=_rgb(bright * tint),
        panels=panels,
        weather=Weather(key=rng.uniform(0.2, 0.34)),
    )


def _rgb(values: np.ndarray) -> RGB:
    return tuple(float(value) for value in values)


def _kinds(rng: np.random.Generator) -> list[Callable[[np.random.Generator], list[Mesh]]]:
    """Things to put on the table: at least four, and more vessels than others."""
    vessels, others = int(rng.integers(4, 10)), int(rng.integers(1, 4))
    picks = [objects.VESSELS[i] for i in rng.integers(len(objects.VESSELS), size=vessels)]
    return picks + [objects.OTHERS[i] for i in rng.integers(len(objects.OTHERS), size=others)]


# --- putting things on the table ----------------------------------------------------------------


def footprint(meshes: Sequence[Mesh]) -> Corners:
    """`[4 2]` corners of the rectangle, along the thing's own axes, that it stands on or over."""
    points = np.concatenate([mesh.vertices[:, :2] for mesh in meshes])
    low, high = points.min(axis=0), points.max(axis=0)
    return np.array([low, (high[0], low[1]), high, (low[0], high[1])])


def apart(first: Corners, second: Corners, gap: float) -> bool:
    """Whether two convex polygons are at least `gap` apart along the normal of some edge."""
    for one, other in ((first, second), (second, first)):
        edges = np.roll(one, -1, axis=0) - one
        outwards = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
        outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
        beyond = (outwards @ other.T).min(axis=1) - np.einsum("ij,ij->i", outwards, one)
        if beyond.max() >= gap:
            return True
    return False


def arrange(
    rng: np.random.Generator,
    things: Sequence[list[Mesh]],
    inside: Callable[[Corners], bool],
    spread: float,
) -> list[list[Mesh]]:
    """Things moved and turned so that none overlaps another or sticks out.

    Large ones come first; the taller a thing, the farther back it tends to stand.

    Args:
        rng: where they go.
        things: each standing on z = 0.
        inside: whether corners lie on the table.
        spread: deviation of the places from the table's middle, metres.

    Returns:
        The things that found a place in 80 tries, in the order they were put down.
    """
    prints = [footprint(thing) for thing in things]
    tall = [max(mesh.vertices[:, 2].max() for mesh in thing) for thing in things]
    order = sorted(range(len(things)), key=lambda i: -np.ptp(prints[i], axis=0).prod())
    taken: list[Corners] = []
    placed = []
    for i in order:
        for _ in range(80):
            place = rng.normal(0, spread, size=2) * (1.5, 1.0) + (0.0, 0.8 * tall[i] - 0.12)
            turn = shapes.rotation(yaw=rng.uniform(-np.pi, np.pi))
            corners = prints[i] @ turn[:2, :2].T + place
            if inside(corners) and all(apart(corners, other, GAP) for other in taken):
                taken.append(corners)
                placed.append(shapes.moved(things[i], (*place, 0.0), turn))
                break
    return placed


# --- table and room -----------------------------------------------------------------------------


def _flat(mesh: Mesh, repeat: float) -> Mesh:
    """The mesh with its texture laid on from above, `repeat` metres a piece."""
    return replace(mesh, uvs=mesh.vertices[:, :2] / repeat)


def _table(
    rng: np.random.Generator, height: float
) -> tuple[list[Mesh], Callable[[Corners], bool], float]:
    """A table, which corners lie on it, and how far it reaches from its middle."""
    top = surfaces.TABLE_TOPS[rng.integers(len(surfaces.TABLE_TOPS))](rng)
    frame = (
        surfaces.wood(rng, "table")
        if rng.random() < 0.7
        else materials.plain("table", np.array([1.0, 1, 1]) * rng.uniform(0.1, 0.9), gloss=0.3)
    )
    covered = rng.random() < 0.3
    thick, margin = rng.uniform(0.02, 0.045), 0.02
    repeat = rng.uniform(0.35, 0.7)
    legs = []
    if rng.random() < 0.3:
        radius = rng.uniform(0.42, 0.62)
        edge = [(radius - 0.004, 0), (radius, 0.004), (radius, thick - 0.004),
                (radius - 0.004, thick)]  # fmt: skip
        plate = shapes.lathe(objects.solid(np.array(edge)), top, sides=64, crease=0.5)
        plate = shapes.moved([_flat(plate, repeat)], (0, 0, height - thick))[0]
        legs.append(shapes.tube((0, 0, 0), (0, 0, height - thick), (0.05, 0.05), frame, 16))
        legs.append(shapes.tube((0, 0, 0), (0, 0, 0.03), (0.28, 0.25), frame, 24))

        def inside(corners: Corners) -> bool:
            return bool((np.linalg.norm(corners, axis=1) < radius - margin).all())

        return [plate, *legs], inside, radius

    half = np.array([rng.uniform(0.5, 0.9), rng.uniform(0.34, 0.5)])
    hang = rng.uniform(0.12, 0.3) if covered else thick
    if covered:
        top = surfaces.cloth(rng, "table")
        repeat = rng.uniform(0.25, 0.6)
    plate = shapes.box((*(2 * half), hang), (0, 0, height - hang / 2), top, texture_size=repeat)
    leg = rng.uniform(0.035, 0.07)
    for x in (-1, 1):
        for y in (-1, 1):
            at = np.array([x, y]) * (half - leg)
            size = (leg, leg, height - hang)
            legs.append(shapes.box(size, (*at, (height - hang) / 2), frame, texture_size=0.3))

    def inside(corners: Corners) -> bool:
        return bool((np.abs(corners) < half - margin).all())

    return [plate, *legs], inside, float(np.linalg.norm(half))


def _camera(
    rng: np.random.Generator,
    size: tuple[int, int],
    focal: float,
    standing: Sequence[list[Mesh]],
    height: float,
) -> Camera:
    """South of the table, above its level, looking at the middle of what stands on it."""
    middle = np.mean([footprint(thing).mean(axis=0) for thing in standing], axis=0)
    points = np.concatenate([mesh.vertices[::5] for thing in standing for mesh in thing])
    nearest = 0.0
    while nearest < 0.3:  # a vase before the lens would fill the picture
        target = np.array([*middle, height + rng.uniform(0.02, 0.14)]) + rng.normal(0, 0.03, 3)
        bearing = rng.uniform(-0.45, 0.45)
        distance = rng.uniform(0.5, 0.9) * np.clip(focal / 0.8, 0.8, 1.3)
        above = np.radians(rng.uniform(8, 38))
        offset = np.array([np.sin(bearing), -np.cos(bearing)]) * np.cos(above)
        position = target + distance * np.array([*offset, np.sin(above)])
        nearest = np.linalg.norm(points - position, axis=1).min()
    ahead = target - position
    yaw = float(np.arctan2(-ahead[0], ahead[1]))
    pitch = float(np.arctan2(ahead[2], np.hypot(ahead[0], ahead[1])))
    camera_axes = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # columns: right, down, forward
    mount = shapes.rotation(yaw, pitch, rng.normal(0, 0.015)) @ camera_axes
    return Camera(size, pinhole(size, focal), position, mount, mount)


def _room(
    rng: np.random.Generator, camera: Camera, reach: float
) -> tuple[list[Mesh], tuple[Panel, ...]]:
    """Floor and four furnished walls around table and camera, and the room's lights."""
    x, y, _ = camera.position
    walls = np.array(  # distances of the north, west, south and east wall from the table's middle
        [
            reach + rng.uniform(0.06, 2.0),
            max(reach, -x) + rng.uniform(0.3, 2.0),
            max(reach, -y) + rng.uniform(0.8, 2.5),
            max(reach, x) + rng.uniform(0.3, 2.0),
        ]
    )
    north, west, south, east = walls
    # High enough that no ray of the camera leaves the room over the walls.
    farthest = np.hypot(north - y, max(east - x, x + west)) + 0.5
    rays = camera.rays()
    steepest = (rays[..., 2] / np.linalg.norm(rays[..., :2], axis=-1)).max()
    top = max(2.6, camera.position[2] + steepest * farthest)
    plaster, floor = surfaces.wall(rng), surfaces.floor(rng)
    skirting = materials.plain("skirting", surfaces.colour(rng, surfaces.PAINTS), gloss=0.3)
    meshes = [
        _flat(
            shapes.quad(
                [(-west, -south, 0), (east, -south, 0), (east, north, 0), (-west, north, 0)], floor
            ),
            rng.uniform(0.8, 1.6),
        )
    ]
    furniture = surfaces.wood(rng, "furniture", gloss=0.2)
    stock = [_kept_opaque(kind(rng)) for kind in STOCK]
    bright = rng.integers(4)  # which wall has the window
    panels: list[Panel] = []
    repeat = rng.uniform(0.8, 1.6)
    middle = np.array([(east - west) / 2, (north - south) / 2])
    for side, out in enumerate(((0, 1), (-1, 0), (0, -1), (1, 0))):
        turn = shapes.rotation(yaw=side * np.pi / 2)
        wide = (east + west, north + south)[side % 2]
        centre = np.where(np.array(out) != 0, np.array(out) * walls[side], middle)
        place = (*centre, 0.0)
        half = wide / 2
        pieces = [
            shapes.quad(
                [(-half, 0, 0), (half, 0, 0), (half, 0, top), (-half, 0, top)],
                plaster,
                (0, 0, wide / repeat, top / repeat),
            ),
            shapes.box((wide, 0.015, 0.09), (0, -0.0075, 0.045), skirting),
        ]
        room_to_table = walls[side] - reach
        window = None
        if (side == bright and side != 0) or (side == 0 and rng.random() < 0.12):
            window = float(rng.uniform(-0.4, 0.4) * max(half - 0.8, 0))
            pieces += _window_frame(window)
        pieces += _furnished(rng, half, room_to_table, furniture, stock, window)
        meshes += shapes.moved(pieces, place, turn)
        if window is not None:
            panels.append(_window(rng, window, place, turn))
    if rng.random() < 0.6 or not panels:
        panels.append(_ceiling_light(rng, min(top - 0.05, 2.6)))
    return meshes, tuple(panels)


def _kept_opaque(thing: Sequence[Mesh]) -> list[Mesh]:
    """The thing as part of the room: no condition changes it."""
    return [replace(mesh, material=replace(mesh.material, role="stock")) for mesh in thing]


WINDOW = (1.7, 1.4, 0.9)  # width, height, and height of the sill


def _window_frame(at: float) -> list[Mesh]:
    width, height, sill = WINDOW
    white = materials.plain("frame", (0.90, 0.90, 0.88), gloss=0.4)
    middle = sill + height / 2
    bars = [
        ((0.07, 0.06, height + 0.14), (at - width / 2 - 0.035, -0.03, middle)),
        ((0.07, 0.06, height + 0.14), (at + width / 2 + 0.035, -0.03, middle)),
        ((0.05, 0.05, height), (at, -0.025, middle)),
        ((width, 0.06, 0.07), (at, -0.03, sill - 0.035)),
        ((width, 0.06, 0.07), (at, -0.03, sill + height + 0.035)),
        ((width, 0.04, 0.04), (at, -0.02, sill + 0.62 * height)),
        ((width + 0.3, 0.16, 0.03), (at, -0.08, sill - 0.085)),
    ]
    return [shapes.box(size, centre, white) for size, centre in bars]


def _window(
    rng: np.random.Generator, at: float, place: tuple[float, float, float], turn: np.ndarray
) -> Panel:
    width, height, sill = WINDOW
    left, right, low, high = at - width / 2, at + width / 2, sill, sill + height
    corners = np.array(
        [(left, -0.01, low), (right, -0.01, low), (right, -0.01, high), (left, -0.01, high)]
    )
    day = np.array([0.92, 1.0, 1.12]) if rng.random() < 0.7 else np.array([1.15, 1.0, 0.80])
    corners = corners @ turn.T + np.array(place)
    return Panel(tuple(map(tuple, corners.tolist())), _rgb(day * rng.uniform(2.5, 6)))


def _ceiling_light(rng: np.random.Generator, height: float) -> Panel:
    x, y = rng.uniform(-0.8, 0.8), rng.uniform(-1.0, 0.5)
    half = rng.uniform(0.25, 0.6)
    corners = tuple(
        (x + half * a, y + half * b, height) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))
    )
    warm = np.array([1.15, 1.0, rng.uniform(0.65, 1.0)])
    return Panel(corners, _rgb(warm * rng.uniform(0.5, 1.2) / half**2))


STOCK = (
    objects.books_standing, objects.books_standing, objects.books_standing, objects.books_lying,
    objects.packet, objects.packet, objects.vase, objects.bottle,
)  # fmt: skip


def _furnished(
    rng: np.random.Generator,
    half: float,
    depth: float,
    wood: Material,
    stock: Sequence[list[Mesh]],
    window: float | None,
) -> list[Mesh]:
    """What hangs on or stands at a wall: pictures, shelves, cabinets.

    Args:
        rng: decides.
        half: half the wall's length, metres.
        depth: free space before the wall, metres.
        wood: of the furniture.
        stock: things to put on shelves and cabinets, again and again.
        window: where a window's middle is, None for no window.
    """
    meshes: list[Mesh] = []
    at = -half + rng.uniform(0.1, 0.5)
    while at + 0.5 < half:
        width = rng.uniform(0.35, 1.0)
        width = min(width, half - at - 0.05)
        middle = at + width / 2
        at += width + rng.uniform(0.08, 0.5)
        clear = window is None or abs(middle - window) > width / 2 + WINDOW[0] / 2 + 0.2
        low = 0.0
        if depth > 0.6 and rng.random() < 0.5:
            low = rng.uniform(0.7, 0.95) if window is None or clear else 0.7
            meshes += _cabinet(rng, middle, width, low, wood, stock)
        if not clear:
            continue
        kind = rng.random()
        if kind < 0.5:
            meshes += _hung(rng, middle, width, max(low + 0.35, rng.uniform(0.95, 1.25)))
        elif kind < 0.85 and depth > 0.3:
            meshes += _shelf(rng, middle, width, max(low + 0.4, rng.uniform(1.0, 1.4)), wood, stock)
    return meshes


def _hung(rng: np.random.Generator, x: float, width: float, low: float) -> list[Mesh]:
    """A framed picture."""
    width *= rng.uniform(0.6, 1.0)
    height = width * rng.uniform(0.6, 1.3)
    middle = low + height / 2
    frame = materials.plain("frame", surfaces.colour(rng), gloss=0.4)
    border = rng.uniform(0.015, 0.05)
    inner = (width / 2 - border, height / 2 - border)
    corners = [(x + a * inner[0], -0.026, middle + b * inner[1])
               for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]  # fmt: skip
    return [
        shapes.box((width, 0.025, height), (x, -0.0125, middle), frame),
        shapes.quad(corners, surfaces.picture(rng)),
    ]


def _shelf(
    rng: np.random.Generator,
    x: float,
    width: float,
    low: float,
    wood: Material,
    stock: Sequence[list[Mesh]],
) -> list[Mesh]:
    """One to three boards with books and vessels on them."""
    meshes = []
    for level in range(int(rng.integers(1, 4))):
        height = low + 0.36 * level
        board = shapes.box((width, 0.22, 0.02), (x, -0.11, height - 0.01), wood, texture_size=0.5)
        meshes.append(board)
        meshes += _on_board(rng, x, width, height, stock)
    return meshes


def _on_board(
    rng: np.random.Generator, x: float, width: float, height: float, stock: Sequence[list[Mesh]]
) -> list[Mesh]:
    """Things side by side on a board 22 cm deep."""
    meshes: list[Mesh] = []
    left = x - width / 2 + 0.02
    while True:
        thing = stock[rng.integers(len(stock))]
        corners = footprint(thing)
        wide = np.ptp(corners[:, 0])
        if left + wide > x + width / 2 - 0.02:
            return meshes
        place = (left + wide / 2 - corners[:, 0].mean(), -0.11 - corners[:, 1].mean(), height)
        meshes += shapes.moved(thing, place)
        left += wide + rng.uniform(0.015, 0.15)


def _cabinet(
    rng: np.random.Generator,
    x: float,
    width: float,
    height: float,
    wood: Material,
    stock: Sequence[list[Mesh]],
) -> list[Mesh]:
    """A sideboard with drawers, and something on it."""
    depth = 0.36
    meshes = [
        shapes.box((width, depth, height), (x, -depth / 2, height / 2), wood, texture_size=0.6)
    ]
    knob = materials.plain("knob", (0.75, 0.72, 0.60), gloss=0.7)
    front = surfaces.wood(rng, "furniture", gloss=0.2) if rng.random() < 0.3 else wood
    rows = int(rng.integers(1, 5))
    for row in range(rows):
        tall = (height - 0.06) / rows
        middle = 0.04 + tall * (row + 0.5)
        panel = (width - 0.04, 0.012, tall - 0.02)
        meshes.append(shapes.box(panel, (x, -depth - 0.006, middle), front, texture_size=0.45))
        meshes.append(shapes.ball((0.014,) * 3, (x, -depth - 0.024, middle), knob))
    if rng.random() < 0.7:
        meshes += shapes.moved(_on_board(rng, x, width, height, stock), (0, -0.06, 0))
    return meshes


# --- conditions ---------------------------------------------------------------------------------

GLASS_TINTS = (
    (0.98, 0.99, 0.985),
    (0.98, 0.99, 0.985),
    (0.98, 0.99, 0.985),
    (0.74, 0.92, 0.78),
    (0.94, 0.80, 0.62),
    (0.76, 0.86, 0.96),
    (0.95, 0.78, 0.84),
    (0.70, 0.90, 0.90),
)
METALS = (
    (0.97, 0.96, 0.94),
    (0.97, 0.96, 0.94),
    (0.82, 0.83, 0.85),
    (0.98, 0.86, 0.60),
    (0.96, 0.76, 0.66),
)


def _glass(rng: np.random.Generator) -> Material:
    """Solid walls that bend the light, or skins too thin for that, like a bubble's."""
    tint = surfaces.colour(rng, GLASS_TINTS, wander=0.04)
    kind = "glass" if rng.random() < 0.75 else "thin_glass"
    return replace(materials.plain(objects.WARE, tint), kind=kind)


def _mirror(rng: np.random.Generator) -> Material:
    tint = surfaces.colour(rng, METALS, wander=0.02)
    return replace(materials.plain(objects.WARE, tint), kind="mirror")


def clear(layout: Layout, rng: np.random.Generator) -> Layout:
    """Everything opaque: the layout as it is."""
    del rng
    return layout


def transparent(layout: Layout, rng: np.random.Generator) -> Layout:
    """Some or all of the ware made of glass, clear or coloured."""
    return _remade(layout, rng, _glass)


def mirror(layout: Layout, rng: np.random.Generator) -> Layout:
    """Some or all of the ware made of polished metal."""
    return _remade(layout, rng, _mirror)


CONDITIONS: dict[str, Callable[[Layout, np.random.Generator], Layout]] = {
    "clear": clear,
    "transparent": transparent,
    "mirror": mirror,
}


def _remade(
    layout: Layout,
    rng: np.random.Generator,
    material: Callable[[np.random.Generator], Material],
) -> Layout:
    """The layout with a random half of the ware, or all of it, of another material."""
    ware = [i for i, mesh in enumerate(layout.meshes) if mesh.material.role == objects.WARE]
    everything = rng.random() < 0.5
    chosen = set(ware if everything else rng.permutation(ware)[: (len(ware) + 1) // 2].tolist())
    meshes = tuple(
        replace(mesh, material=material(rng)) if i in chosen else mesh
        for i, mesh in enumerate(layout.meshes)
    )
    return replace(layout, meshes=meshes)


def categories(layout: Layout, surface: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Booster's material categories (Zama Ramirez et al., 2022): the harder, the higher.

    Its evaluation counts 2 and 3 as transparent or mirror ("ToM"), 0 and 1 as other. Its published
    sample of a mask gives silver 2 and glass 3, so do we; 1 is a glossy coat, 0 everything else.

    Args:
        layout: the scene in one condition.
        surface: `[h w]` which mesh each pixel shows; from the number of meshes on, and -1: none.

    Returns:
        uint8 `[h w]`.
    """
    kinds = {"glass": 3, "thin_glass": 3, "mirror": 2}
    values = [
        kinds.get(mesh.material.kind, int(mesh.material.gloss >= 0.5)) for mesh in layout.meshes
    ]
    known = (surface >= 0) & (surface < len(values))
    return np.where(known, np.array(values, np.uint8)[np.where(known, surface, 0)], np.uint8(0))
