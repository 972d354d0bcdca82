"""Surfaces of a street: asphalt, paving, grass, leaves, walls, roofs, windows, signs.

Conventions as in `materials`: uint8 sRGB textures, row 0 at the top, randomness from the generator.
"""

from collections.abc import Sequence

import numpy as np

from diffdepth_jax.scenes.materials import Colour, Material, mottled, muted, noise, to_bytes

ROAD_PIXELS = 48  # approximately, per metre across the texture of `road`


def road(
    rng: np.random.Generator,
    width: float,
    lines: Sequence[tuple[float, str]],
    *,
    repeat: float = 12.0,
    brightness: float = 0.33,
) -> Material:
    """Asphalt across the road's width, tiling seamlessly every `repeat` metres along it.

    `lines` are (metres from the left edge, "solid" | "dashed" | "yellow"): markings 12 cm wide,
    with 4 m dashes every 12 m.
    """
    rows, columns = (
        384,
        32 * round(ROAD_PIXELS * width / 32),
    )  # a size that is efficient for the FFT
    tint = np.array([1.0, 0.99, 0.96]) if rng.random() < 0.5 else np.array([0.97, 0.99, 1.02])
    image = mottled(rng, (rows, columns), brightness * tint, 0.04, 0.4)
    image *= 1 + 0.07 * noise(rng, rows, columns, slope=1.6)[..., None]
    across = (np.arange(columns) + 0.5) / columns * width
    along = (np.arange(rows) + 0.5) / rows * repeat
    # Wheels polish two tracks in each lane.
    lane = max(width / max(round(width / 3.3), 1), 2.5)
    tracks = np.cos(2 * np.pi * across / (lane / 2)) * rng.uniform(0.01, 0.05)
    image *= 1 + tracks[None, :, None]
    for _ in range(rng.integers(0, 4)):  # repairs
        top, left = rng.integers(0, rows - 60), rng.integers(0, max(columns - 60, 1))
        height, breadth = rng.integers(20, 120), rng.integers(20, 80)
        image[top : top + height, left : left + breadth] *= rng.uniform(0.72, 1.12)
    wear = np.clip(0.9 + 0.12 * noise(rng, rows, columns, slope=0.8), 0.45, 1.0)
    for position, style in lines:
        paint = np.abs(across[None, :] - position) < 0.075
        if style == "dashed":
            paint = paint & (along[:, None] % 12.0 < 4.0)
        paint = np.broadcast_to(paint, (rows, columns))
        colour = np.array([0.86, 0.68, 0.18]) if style == "yellow" else np.array([0.9, 0.9, 0.87])
        mixed = image * (1 - wear[..., None]) + colour * wear[..., None]
        image = np.where(paint[..., None], mixed, image)
    return Material("road", to_bytes(image), gloss=0.0)


def paving(rng: np.random.Generator, slab: int = 32) -> Material:
    """Pavement slabs with dark joints; seamless."""
    warm = rng.uniform(-0.02, 0.05)
    base = rng.uniform(0.48, 0.66) * np.array([1 + warm, 1.0, 1 - warm])
    image = mottled(rng, (256, 256), base, 0.04, 0.8)
    tiles = rng.normal(1, 0.05, size=(256 // slab, 256 // slab))
    image *= np.kron(tiles, np.ones((slab, slab)))[..., None]
    joint = (np.arange(256) % slab) < 2
    image[joint] *= 0.75
    image[:, joint] *= 0.75
    return Material("pavement", to_bytes(image))


def grass(rng: np.random.Generator) -> Material:
    """Lawn or meadow with lighter and drier patches; seamless."""
    green = np.array([0.34, 0.43, 0.17]) * rng.uniform(0.8, 1.2)
    dry = np.array([0.52, 0.48, 0.27])
    mix = np.clip(0.2 + 0.25 * noise(rng, 256, 256, slope=1.5) + 0.2 * rng.normal(), 0, 0.8)[
        ..., None
    ]
    image = (green * (1 - mix) + dry * mix) * (
        1 + 0.11 * noise(rng, 256, 256, slope=0.5)[..., None]
    )
    return Material("grass", to_bytes(image))


def foliage(rng: np.random.Generator, colour: Colour | None = None) -> Material:
    """Distant leaves: light and dark clusters; seamless."""
    if colour is None:
        colour = [
            (0.27, 0.39, 0.15),
            (0.20, 0.33, 0.14),
            (0.36, 0.44, 0.18),
            (0.42, 0.40, 0.16),
            (0.21, 0.34, 0.16),
        ][rng.integers(5)]
    field = noise(rng, 128, 128, slope=0.7, finest=0.2)
    image = np.asarray(colour) * np.exp(0.33 * field - 0.1)[..., None]
    image *= 1 + 0.06 * rng.normal(size=(128, 128, 1))
    return Material("foliage", to_bytes(image))


def bark(rng: np.random.Generator) -> Material:
    """Tree bark, streaked upwards."""
    streaks = np.repeat(noise(rng, 16, 64, slope=0.3), 8, axis=0)
    base = np.array([0.36, 0.30, 0.24]) * rng.uniform(0.7, 1.25)
    return Material("bark", to_bytes(base * (1 + 0.22 * streaks[..., None])))


def roof(rng: np.random.Generator) -> Material:
    """Roof tiles in rows; seamless."""
    base = [(0.55, 0.27, 0.18), (0.42, 0.24, 0.19), (0.28, 0.28, 0.30), (0.48, 0.38, 0.32)][
        rng.integers(4)
    ]
    image = mottled(rng, (128, 128), base, 0.06, 0.5)
    image *= np.kron(rng.normal(1, 0.09, size=(8, 16)), np.ones((16, 8)))[..., None]
    image *= (0.72 + 0.4 * (np.arange(128) % 16) / 16)[:, None, None]
    return Material("roof", to_bytes(image))


ATLAS = 4  # windows and signs are in atlases of ATLAS x ATLAS images


def atlas_uv(index: int) -> tuple[float, float, float, float]:
    """(u0, v0, u1, v1) of one image in an ATLAS x ATLAS atlas, counted from the top left."""
    row, column = divmod(index % ATLAS**2, ATLAS)
    inset = 0.004
    return (
        column / ATLAS + inset,
        1 - (row + 1) / ATLAS + inset,
        (column + 1) / ATLAS - inset,
        1 - row / ATLAS - inset,
    )


def windows(rng: np.random.Generator) -> Material:
    """An atlas of ATLAS**2 windows with one frame style: panes, curtains, blinds, dark rooms."""
    size = 48
    frame = [(0.92, 0.92, 0.90), (0.35, 0.25, 0.18), (0.25, 0.27, 0.30), (0.80, 0.76, 0.66)][
        rng.integers(4)
    ]
    columns, rows = [(2, 1), (1, 1), (2, 2), (2, 3), (1, 2)][rng.integers(5)]
    sheet = np.zeros((ATLAS * size, ATLAS * size, 3))
    for index in range(ATLAS**2):
        # Glass shows a dark room, lighter where it reflects the sky.
        down = np.linspace(0, 1, size)[:, None, None]
        glass = np.array([0.16, 0.19, 0.23]) * rng.uniform(0.7, 1.5)
        sky = np.array([0.45, 0.53, 0.62]) * rng.uniform(0.5, 1.1)
        pane = np.broadcast_to(
            glass + (sky - glass) * (1 - down) ** 2 * 0.7, (size, size, 3)
        ).copy()
        look = rng.random()
        if look < 0.3:  # curtains at both sides
            cloth = np.array([0.80, 0.78, 0.72]) * rng.uniform(0.6, 1.05)
            breadth = int(size * rng.uniform(0.12, 0.4))
            folds = 1 - 0.15 * np.sin(np.arange(breadth) * 1.4)[None, :, None]
            pane[:, :breadth] = cloth * folds
            pane[:, size - breadth :] = cloth * folds
        elif look < 0.5:  # a blind part of the way down
            height = int(size * rng.uniform(0.2, 0.9))
            slats = 1 - 0.12 * (np.arange(height) % 4 == 0)[:, None, None]
            pane[:height] = np.array([0.78, 0.77, 0.74]) * rng.uniform(0.6, 1.1) * slats
        bars = np.zeros((size, size), bool)
        bars[:4] = bars[-4:] = bars[:, :4] = bars[:, -4:] = True
        for i in range(1, columns):
            bars[:, size * i // columns - 1 : size * i // columns + 2] = True
        for i in range(1, rows):
            bars[size * i // rows - 1 : size * i // rows + 2] = True
        pane[bars] = frame
        row, column = divmod(index, ATLAS)
        sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = pane
    return Material("window", to_bytes(sheet), gloss=0.9)


def doors(rng: np.random.Generator) -> Material:
    """An atlas of ATLAS**2: a row of house doors, one of garage doors, two of shop windows."""
    size = 64
    sheet = np.zeros((ATLAS * size, ATLAS * size, 3))
    for index in range(ATLAS**2):
        row, column = divmod(index, ATLAS)
        colour = muted(rng, 0.15, 0.65)
        if row == 0:
            picture = np.broadcast_to(colour, (size, size, 3)).copy()
            for y, x in ((8, 10), (8, 36), (36, 10), (36, 36)):
                picture[y : y + 20, x : x + 18] *= 0.75
        elif row == 1:
            picture = np.broadcast_to(0.4 + 0.5 * colour, (size, size, 3)).copy()
            picture[::8] *= 0.7
        else:
            glass = np.array([0.20, 0.23, 0.26]) * rng.uniform(0.6, 1.6)
            picture = np.broadcast_to(glass, (size, size, 3)).copy()
            for _ in range(9):  # goods
                top, left = rng.integers(24, 52), rng.integers(4, 54)
                picture[top : top + 10, left : left + 8] = muted(rng, 0.2, 0.9)
            picture[:14] = colour
            for x in range(6, 58, 7):  # letters
                if rng.random() < 0.75:
                    picture[4:10, x : x + rng.integers(2, 5)] = 0.92
            picture[-8:] = 0.35
            picture[14:, [0, 1, 31, 32, 62, 63]] = 0.3
        sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = picture
    return Material("door", to_bytes(sheet), gloss=0.6)


def signs() -> Material:
    """An atlas of ATLAS**2 signs by row: round, triangular, blue squares, boards."""
    size = 64
    red, white, blue = (
        np.array([0.78, 0.08, 0.10]),
        np.array([0.95] * 3),
        np.array([0.1, 0.25, 0.6]),
    )
    black, yellow, green = (
        np.array([0.06] * 3),
        np.array([0.95, 0.75, 0.1]),
        np.array([0.1, 0.4, 0.25]),
    )
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    radius = np.hypot(x, y)
    sheet = np.zeros((ATLAS * size, ATLAS * size, 3))
    for index in range(ATLAS**2):
        row, column = divmod(index, ATLAS)
        picture = np.broadcast_to(white, (size, size, 3)).copy()
        bar = (np.abs(y) < 0.15) & (np.abs(x) < 0.6)
        figure = (np.abs(np.abs(x) - 0.22) < 0.12) & (np.abs(y) < 0.38)
        if row == 0:
            if column == 0:  # no entry
                picture[:] = red
                picture[bar] = white
            elif column == 1:  # speed limit
                picture[radius > 0.72] = red
                picture[figure] = black
            elif column == 2:  # no stopping
                picture[:] = blue
                picture[(radius > 0.78) | (np.abs(x - y) < 0.2)] = red
            else:  # stop
                picture[:] = red
                picture[bar & (np.abs((x * 6) % 2 - 1) > 0.35)] = white
        elif row == 1:
            up = -y if column < 3 else y
            inner = (up > -0.52) & (np.abs(x) < 0.58 * (0.6 - up))
            picture[:] = yellow if column == 2 else white
            picture[~inner] = red
            picture[(np.abs(x) < 0.08) & (y > -0.2) & (y < 0.5)] = black
        elif row == 2:
            picture[:] = blue
            if column % 2 == 0:
                picture[(np.abs(x) < 0.18) & (np.abs(y) < 0.65)] = white
            else:
                picture[(np.abs(np.abs(x) + y) < 0.2) & (y < 0.5)] = white
        else:
            picture[:] = (green, yellow, blue, white)[column]
            ink = black if column in (1, 3) else white
            for line in (-0.5, 0.0, 0.5):
                text = (np.abs(y - line) < 0.13) & (np.abs((x * (7 + line)) % 2 - 1) > 0.25)
                picture[text & (np.abs(x) < 0.8)] = ink
            picture[(np.abs(x) > 0.94) | (np.abs(y) > 0.94)] = ink
        sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = picture
    return Material("sign", to_bytes(sheet), gloss=0.2)
