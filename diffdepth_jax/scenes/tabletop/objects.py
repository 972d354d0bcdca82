"""Objects on a table, built from meshes.

Every function returns meshes in the object's own axes: standing on z = 0 at the origin, metres.
Anything that could also be made of glass or metal is one closed mesh with role `WARE`, walls with
some thickness and its own material; lids, labels, books and fruit have other roles.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.tabletop import surfaces

WARE = "ware"

Profile = Float[np.ndarray, "n 2"]  # (radius, height) in metres


# --- turned shapes ------------------------------------------------------------------------------


def curve(points: Sequence[tuple[float, float]], steps: int = 5) -> Profile:
    """A smooth curve through (radius, height) points, with `steps` segments between points.

    Monotone cubics over chord length with harmonic-mean slopes (Fritsch and Butland, 1984): between
    two points no coordinate leaves their range, so walls do not bulge unexpectedly.
    """
    knots = np.asarray(points, float)
    length = np.hypot(*np.diff(knots, axis=0).T)[:, None]
    secants = np.diff(knots, axis=0) / length
    product, total = secants[:-1] * secants[1:], secants[:-1] + secants[1:]
    bends = np.where(product > 0, 2 * product / np.where(product > 0, total, 1.0), 0.0)
    slopes = np.concatenate([secants[:1], bends, secants[-1:]])
    at = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        (1 + 2 * at) * (1 - at) ** 2 * knots[i]
        + at * (1 - at) ** 2 * length[i] * slopes[i]
        + at**2 * (3 - 2 * at) * knots[i + 1]
        + at**2 * (at - 1) * length[i] * slopes[i + 1]
        for i in range(len(knots) - 1)
    ]
    return np.concatenate([*pieces, knots[-1:]])


def hollow(outside: Profile, thickness: float, bottom: float) -> Profile:
    """The profile of a vessel, from the centre of its foot over the lip to the centre inside.

    Args:
        outside: from the edge of the foot, at height 0, up to the lip.
        thickness: thickness of the wall, metres.
        bottom: height at which the inside starts.
    """
    along = np.gradient(outside, axis=0)
    along /= np.hypot(*along.T)[:, None]
    inside = outside - thickness * np.stack([along[:, 1], -along[:, 0]], axis=1)
    # The lip: half a circle from the outside to the inside.
    turn = np.linspace(0, np.pi, 6)[1:-1, None]
    middle, half = (outside[-1] + inside[-1]) / 2, (outside[-1] - inside[-1]) / 2
    lip = middle + np.cos(turn) * half + np.sin(turn) * along[-1] * thickness / 2
    # The last part of the inside that is above the bottom.
    first = len(inside) - int(np.argmin(np.append((inside[::-1, 1] > bottom), False)))
    floor = np.array([[0.0, bottom]])
    if first > 0:
        below, above = inside[first - 1], inside[first]
        share = (bottom - below[1]) / (above[1] - below[1])
        corner = below[0] + share * (above[0] - below[0])
        floor = np.array([[max(corner, 0.0), bottom], [0.0, bottom]])
    return np.concatenate([[(0.0, 0.0)], outside, lip, inside[first:][::-1], floor])


def solid(outside: Profile) -> Profile:
    """The profile of a solid body: `outside` closed at both ends on the axis."""
    ends = outside[[0, -1]] * np.array([0.0, 1.0])
    return np.concatenate([ends[:1], outside, ends[1:]])


def _ware(rng: np.random.Generator) -> Material:
    """Ceramic, turned wood, plastic or painted metal."""
    kind = rng.random()
    if kind < 0.6:
        return surfaces.glaze(rng, WARE)
    if kind < 0.75:
        return surfaces.wood(rng, WARE, gloss=float(rng.choice((0.0, 0.4))))
    return materials.plain(WARE, surfaces.colour(rng), gloss=float(rng.choice((0.0, 0.3, 0.7))))


def _vessel(rng: np.random.Generator, outside: Profile, wall: float, bottom: float) -> Mesh:
    return shapes.lathe(hollow(outside, wall, bottom), _ware(rng))


# --- vessels ------------------------------------------------------------------------------------


def _label(rng: np.random.Generator, radius: float, bottom: float, top: float) -> Mesh:
    """A printed label around a straight wall that does not close at the back."""
    angle = np.linspace(-1, 1, 17) * rng.uniform(0.8, 2.2) - np.pi / 2
    circle = (radius + 4e-4) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rows = [np.column_stack([circle, np.full(17, height)]) for height in (bottom, top)]
    first = np.arange(16)
    across = np.linspace(0, 1, 17)
    return Mesh(
        vertices=np.concatenate(rows),
        faces=np.concatenate(
            [
                np.stack([first, first + 1, first + 18], axis=1),
                np.stack([first, first + 18, first + 17], axis=1),
            ]
        ),
        uvs=np.concatenate([np.column_stack([across, np.full(17, v)]) for v in (0.0, 1.0)]),
        material=surfaces.print_(rng, "label"),
        normals=np.concatenate([np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])] * 2),
    )


def _stopper(rng: np.random.Generator, radius: float, bottom: float, height: float) -> Mesh:
    """A cork, cap or lid on the rim."""
    tones = ((0.72, 0.56, 0.38), (0.80, 0.74, 0.40), (0.75, 0.16, 0.14), (0.16, 0.17, 0.19))
    low, edge = bottom + 2e-4, min(0.002, height / 3)
    outside = [(radius, low), (radius, low + height - edge), (radius - edge, low + height)]
    profile = solid(np.array(outside))
    lid = materials.plain("lid", surfaces.colour(rng, tones), gloss=0.4)
    return shapes.lathe(profile, lid, sides=24)


def bottle(rng: np.random.Generator) -> list[Mesh]:
    """A bottle (high or sloping shoulders), flask or carafe, often with a label or cork."""
    style = rng.integers(4)
    height = rng.uniform(0.20, 0.33)
    body = height * rng.uniform(0.115, 0.16)
    neck = min(rng.uniform(0.010, 0.016), body * 0.5)
    if style == 0:  # straight sides and high shoulders
        shoulder = rng.uniform(0.56, 0.66) * height
        line = [(body * 0.96, 0), (body, 0.006), (body, shoulder),
                (body * 0.72, shoulder + 0.45 * (body - neck)),
                (neck * 1.1, shoulder + 1.1 * (body - neck) + 0.01),
                (neck, 0.93 * height), (neck, height)]  # fmt: skip
    elif style == 1:  # sloping shoulders
        shoulder = rng.uniform(0.35, 0.5) * height
        line = [(body * 0.96, 0), (body, 0.006), (body, shoulder), (body * 0.8, shoulder * 1.3),
                (neck * 1.2, 0.78 * height), (neck, 0.92 * height), (neck, height)]  # fmt: skip
    elif style == 2:  # a round flask
        body, shoulder = body * 1.35, 0.0
        line = [(body * 0.55, 0), (body * 0.9, 0.12 * height), (body, 0.24 * height),
                (body * 0.86, 0.38 * height), (neck * 1.5, 0.55 * height),
                (neck, 0.70 * height), (neck, height)]  # fmt: skip
    else:  # a carafe, open at the top
        body, shoulder = body * 1.2, 0.0
        line = [(body * 0.92, 0), (body, 0.02), (body * 0.95, 0.30 * height),
                (neck * 1.7, 0.68 * height), (neck * 1.6, 0.80 * height),
                (neck * 2.4, height)]  # fmt: skip
    outside = curve(line)
    profile = hollow(outside, rng.uniform(0.002, 0.0035), rng.uniform(0.004, 0.012))
    if style != 3 and rng.random() < 0.7:  # a ring at the mouth
        ring = np.array([(neck, 0.955), (neck + 0.0025, 0.96), (neck + 0.0025, 0.995), (neck, 1.0)])
        below = outside[outside[:, 1] < 0.95 * height]
        above = profile[1 + len(outside) :]
        profile = np.concatenate([profile[:1], below, ring * (1, height), above])
    meshes = [shapes.lathe(profile, _ware(rng))]
    if style < 2 and rng.random() < 0.6:
        low, high = rng.uniform(0.15, 0.3) * shoulder, rng.uniform(0.6, 0.92) * shoulder
        meshes.append(_label(rng, body, low, high))
    if style != 3 and rng.random() < 0.5:
        top = float(meshes[0].vertices[:, 2].max())
        meshes.append(_stopper(rng, neck + 0.002, top, rng.uniform(0.008, 0.02)))
    return meshes


def jar(rng: np.random.Generator) -> list[Mesh]:
    """A wide-mouthed jar, often with a lid."""
    radius, height = rng.uniform(0.035, 0.06), rng.uniform(0.08, 0.16)
    mouth = radius * rng.uniform(0.75, 0.95)
    line = [(radius * 0.93, 0), (radius, 0.006), (radius, height * 0.8),
            (mouth, height * 0.9), (mouth, height)]  # fmt: skip
    meshes = [_vessel(rng, curve(line), 0.003, 0.006)]
    if rng.random() < 0.6:
        top = float(meshes[0].vertices[:, 2].max())
        meshes.append(_stopper(rng, mouth + 0.003, top, rng.uniform(0.01, 0.02)))
    if rng.random() < 0.35:
        meshes.append(_label(rng, radius, height * 0.2, height * 0.65))
    return meshes


def vase(rng: np.random.Generator) -> list[Mesh]:
    """A vase with a random profile, from slim bud vases to amphoras."""
    height, width = rng.uniform(0.15, 0.32), rng.uniform(0.04, 0.075)
    style = rng.integers(4)
    if style == 0:
        radii = (0.55, 0.8, 1.0, 0.75, 0.4, 0.55)
    elif style == 1:
        radii = (0.6, 0.5, 0.55, 0.7, 0.85, 1.0)
    elif style == 2:
        radii = (0.45, 0.75, 1.0, 1.0, 0.7, 0.45)
    else:
        radii = (0.6, 1.0, 0.95, 0.5, 0.28, 0.4)
    swell = np.maximum(np.asarray(radii) + rng.normal(0, 0.07, 6), 0.24) * width
    heights = np.linspace(0, height, 6)
    heights[1:-1] += rng.uniform(-0.06, 0.06, 4) * height
    line = list(zip(swell, heights, strict=True))
    return [_vessel(rng, curve(line), rng.uniform(0.0025, 0.004), rng.uniform(0.005, 0.015))]


def bowl(rng: np.random.Generator) -> list[Mesh]:
    """A bowl, from a cereal bowl to a wide fruit bowl, or a deep plate."""
    radius = rng.uniform(0.055, 0.13)
    height = radius * rng.uniform(0.35, 0.9)
    foot = radius * rng.uniform(0.35, 0.5)
    flare = rng.uniform(0.75, 0.97)
    line = [(foot, 0), (foot, 0.005), (radius * 0.72, height * 0.3),
            (radius * (0.72 + 0.28 * flare), height * 0.68), (radius, height)]  # fmt: skip
    return [_vessel(rng, curve(line), rng.uniform(0.003, 0.005), 0.008)]


def tumbler(rng: np.random.Generator) -> list[Mesh]:
    """A drinking glass without a stem."""
    height = rng.uniform(0.07, 0.15)
    low = rng.uniform(0.024, 0.034)
    high = low * rng.uniform(1.0, 1.4)
    line = [(low * 0.94, 0), (low, 0.004), ((low + high) / 2 * rng.uniform(0.96, 1.06), height / 2),
            (high, height)]  # fmt: skip
    return [_vessel(rng, curve(line), rng.uniform(0.0018, 0.003), rng.uniform(0.005, 0.014))]


def goblet(rng: np.random.Generator) -> list[Mesh]:
    """A glass with a stem: wine, champagne or dessert."""
    stem, cup = rng.uniform(0.05, 0.09), rng.uniform(0.06, 0.12)
    radius = rng.uniform(0.028, 0.045)
    lip = radius * rng.uniform(0.7, 1.05)
    line = [(radius * 0.95, 0), (radius * 0.95, 0.0025), (0.012, 0.008), (0.0045, 0.018),
            (0.0045, stem), (radius * 0.65, stem + 0.2 * cup), (radius, stem + 0.5 * cup),
            (lip, stem + cup)]  # fmt: skip
    return [_vessel(rng, curve(line), rng.uniform(0.0015, 0.0022), stem + 0.005)]


def mug(rng: np.random.Generator) -> list[Mesh]:
    """A mug or cup; the ends of its handle are inside the wall."""
    height, radius = rng.uniform(0.07, 0.11), rng.uniform(0.034, 0.045)
    flare = rng.uniform(1.0, 1.35) if rng.random() < 0.5 else 1.0
    wall = 0.0035
    line = [(radius * 0.92, 0), (radius, 0.006), (radius * (1 + flare) / 2, height / 2),
            (radius * flare, height)]  # fmt: skip
    outside = curve(line)
    body = _vessel(rng, outside, wall, 0.006)
    low, high = 0.22 * height, rng.uniform(0.72, 0.85) * height
    thick, reach = rng.uniform(0.0035, 0.0055), rng.uniform(0.022, 0.034)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 13)
    z = (low + high) / 2 + (high - low) / 2 * np.sin(angle)
    x = np.interp(z, outside[:, 1], outside[:, 0]) - wall / 2 + reach * np.cos(angle)
    path = np.column_stack([x, 0 * x, z])
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.array([0.0, 1.0, 0.0])
    turn = np.linspace(0, 2 * np.pi, 10, endpoint=False)[None, :, None]
    rings = path[:, None] + thick * (
        np.cos(turn) * side + np.sin(turn) * np.cross(along, side)[:, None]
    )
    handle = shapes.loft(rings, body.material, smooth=True)
    return shapes.merged([body, handle])


def ball(rng: np.random.Generator) -> list[Mesh]:
    radius = rng.uniform(0.025, 0.06)
    return [shapes.ball([radius] * 3, (0, 0, radius), _ware(rng), steps=(25, 36))]


# --- what stays opaque --------------------------------------------------------------------------


def packet(rng: np.random.Generator) -> list[Mesh]:
    """A cardboard box or tea tin, standing or lying."""
    size = np.array([rng.uniform(0.05, 0.14), rng.uniform(0.04, 0.10), rng.uniform(0.05, 0.2)])
    return [shapes.box(size, (0, 0, size[2] / 2), surfaces.print_(rng, "packet"))]


def _book(rng: np.random.Generator, height: float, depth: float, thickness: float) -> list[Mesh]:
    """A standing book: thickness along x, the spine at -y."""
    cover, board, edge = surfaces.print_(rng, "book", gloss=0.4), 0.0025, 0.004
    half = thickness / 2
    block = (thickness - 2 * board, depth - edge - board, height - 2 * edge)
    return [
        shapes.box((board, depth, height), (board / 2 - half, 0, height / 2), cover),
        shapes.box((board, depth, height), (half - board / 2, 0, height / 2), cover),
        shapes.box(
            (thickness - 2 * board, board, height), (0, (board - depth) / 2, height / 2), cover
        ),
        shapes.box(block, (0, (board - edge) / 2, height / 2), surfaces.pages(rng)),
    ]


def _book_size(rng: np.random.Generator) -> tuple[float, float, float]:
    height = rng.uniform(0.17, 0.28)
    return height, height * rng.uniform(0.62, 0.8), rng.uniform(0.012, 0.045)


def books_lying(rng: np.random.Generator) -> list[Mesh]:
    """One book or a pile of up to five, the larger ones below."""
    sizes = sorted((_book_size(rng) for _ in range(rng.integers(1, 6))), reverse=True)
    meshes, top = [], 0.0
    for height, depth, thickness in sizes:
        lying = shapes.moved(
            _book(rng, height, depth, thickness),
            (-height / 2, 0, thickness / 2),
            shapes.rotation(roll=np.pi / 2),
        )
        turn = shapes.rotation(yaw=rng.normal(0, 0.12) + np.pi * rng.integers(2))
        shift = (*rng.normal(0, 0.006, 2), top)
        meshes += shapes.moved(lying, shift, turn)
        top += thickness
    return meshes


def books_standing(rng: np.random.Generator, count: int | None = None) -> list[Mesh]:
    """A row of books side by side, spines in front."""
    count = int(rng.integers(2, 7)) if count is None else count
    sizes = [_book_size(rng) for _ in range(count)]
    left = -sum(size[2] + 0.001 for size in sizes) / 2
    meshes = []
    for height, depth, thickness in sizes:
        place = (left + thickness / 2, depth / 2 - 0.09 + rng.uniform(0, 0.01), 0)
        meshes += shapes.moved(_book(rng, height, depth, thickness), place)
        left += thickness + 0.001
    return meshes


def fruit(rng: np.random.Generator) -> list[Mesh]:
    """An apple, an orange, a lemon or a pear."""
    kind = rng.integers(4)
    tones = (
        ((0.72, 0.14, 0.12), (0.62, 0.70, 0.22), (0.80, 0.42, 0.18)),
        ((0.92, 0.52, 0.10),),
        ((0.93, 0.82, 0.20),),
        ((0.72, 0.74, 0.26), (0.66, 0.52, 0.22)),
    )[kind]
    skin = materials.plain("fruit", surfaces.colour(rng, tones), gloss=0.4)
    size = rng.uniform(0.03, 0.042)
    if kind == 1:
        return [shapes.ball([size] * 3, (0, 0, size), skin, steps=(15, 24))]
    if kind == 2:  # lying on its side
        radii = (size * 1.15, size * 0.8, size * 0.8)
        return [shapes.ball(radii, (0, 0, radii[2]), skin, steps=(15, 24))]
    if kind == 0:
        line = [(0.3, 0), (0.75, 0.28), (1.0, 0.95), (0.72, 1.6), (0.35, 1.74), (0.08, 1.6)]
        tip = 1.58
    else:
        line = [(0.3, 0), (0.8, 0.25), (1.0, 0.8), (0.72, 1.5), (0.42, 2.1), (0.25, 2.45)]
        tip = 2.44
    body = shapes.lathe(solid(curve(line) * size), skin, sides=24)
    wood = materials.plain("stalk", (0.30, 0.22, 0.14))
    stalk = shapes.tube(
        (0, 0, (tip + 0.03) * size), (0.004, 0, (tip + 0.5) * size), (0.0018, 0.0015), wood, 6
    )
    return [body, stalk]


def candle(rng: np.random.Generator) -> list[Mesh]:
    """A thick candle."""
    radius, height = rng.uniform(0.02, 0.04), rng.uniform(0.06, 0.18)
    wax = materials.plain("wax", surfaces.colour(rng), gloss=0.2)
    outside = np.array([(radius, 0), (radius, height - 0.002), (radius - 0.003, height)])
    wick = shapes.tube(
        (0, 0, height + 1e-4),
        (0.001, 0, height + 0.012),
        (0.001, 0.001),
        materials.plain("wick", (0.1, 0.1, 0.1)),
        6,
    )
    return [shapes.lathe(solid(outside), wax, sides=28), wick]


VESSELS: tuple[Callable[[np.random.Generator], list[Mesh]], ...] = (
    bottle, bottle, bottle, vase, vase, bowl, bowl, tumbler, tumbler, goblet, jar, mug, mug, ball,
)  # fmt: skip
OTHERS: tuple[Callable[[np.random.Generator], list[Mesh]], ...] = (
    books_lying, books_lying, books_standing, packet, packet, fruit, fruit, candle,
)  # fmt: skip
