"""Surfaces of rooms, tables and objects: wood, cloth, stone, glazes, print, pictures.

Conventions as in `materials`: uint8 sRGB textures, row 0 at the top, randomness from the generator.
"""

from collections.abc import Callable

import numpy as np

from diffdepth_jax.scenes import materials
from diffdepth_jax.scenes.materials import Material, noise, to_bytes

WOODS = (
    (0.72, 0.54, 0.36),
    (0.62, 0.43, 0.27),
    (0.46, 0.30, 0.19),
    (0.33, 0.21, 0.14),
    (0.80, 0.68, 0.50),
    (0.56, 0.36, 0.20),
)

COLOURS = (
    (0.80, 0.24, 0.20),
    (0.86, 0.52, 0.18),
    (0.90, 0.76, 0.30),
    (0.36, 0.56, 0.30),
    (0.22, 0.46, 0.46),
    (0.22, 0.38, 0.66),
    (0.44, 0.30, 0.54),
    (0.78, 0.48, 0.54),
    (0.92, 0.90, 0.84),
    (0.60, 0.58, 0.54),
    (0.20, 0.20, 0.23),
    (0.52, 0.34, 0.24),
)


def colour(
    rng: np.random.Generator,
    choices: tuple[tuple[float, ...], ...] = COLOURS,
    wander: float = 0.2,
) -> np.ndarray:
    """One of `choices`, with brightness changed by up to `wander` and a shifted hue: `[3]`."""
    base = np.asarray(choices[rng.integers(len(choices))])
    light, hue = rng.uniform(-wander, wander), rng.uniform(-0.4 * wander, 0.4 * wander, 3)
    return np.clip(base * (1 + light) * (1 + hue), 0.02, 0.99)


def _field(size: int, tone: np.ndarray) -> np.ndarray:
    return np.broadcast_to(tone, (size, size, 3)).astype(float)


def wood(rng: np.random.Generator, role: str, *, planks: int = 0, gloss: float = 0.0) -> Material:
    """Wood grain along the texture's width; `planks` boards side by side, 0 for one piece;
    seamless."""
    size = 256
    base = colour(rng, WOODS)
    row, column = np.mgrid[:size, :size] / size
    # Growth rings cut at a slant: wavy stripes, stretched along the grain.
    wave = noise(rng, size, 32, slope=1.6, finest=0.1).repeat(8, axis=1)
    rings = np.sin(2 * np.pi * (rng.integers(5, 12) * row + 0.35 * wave))
    fibres = noise(rng, size, 16, slope=0.3).repeat(16, axis=1)
    image = base * (1 + rng.uniform(0.04, 0.12) * rings + 0.05 * fibres)[..., None]
    if planks:
        board = (row * planks).astype(int)
        shift = rng.uniform(size=planks)[board]
        piece = ((column + shift) * 2 % 2).astype(int)
        image *= rng.normal(1, 0.10, size=(planks, 2))[board, piece][..., None]
        joint = (row * planks % 1 < planks / size) | ((column + shift) * 2 % 1 < 2 / size)
        image[joint] *= 0.6
    return Material(role, to_bytes(image), gloss)


def stone(rng: np.random.Generator, role: str, *, gloss: float = 0.7) -> Material:
    """Polished stone: veined marble or speckled granite; seamless."""
    size = 256
    base = colour(
        rng, ((0.90, 0.89, 0.86), (0.62, 0.60, 0.57), (0.30, 0.31, 0.32), (0.78, 0.70, 0.58))
    )
    if rng.random() < 0.6:
        veins = np.exp(-np.abs(noise(rng, size, size, slope=1.7)) * rng.uniform(8, 20))
        ink = base * 0.55 if base.mean() > 0.5 else base + 0.35
        strength = (0.7 * veins)[..., None]
        image = base * (1 - strength) + ink * strength
        image *= 1 + 0.04 * noise(rng, size, size, slope=1.5)[..., None]
    else:
        grain = noise(rng, size, size, slope=0.5, finest=0.25)
        image = base * (1 + 0.16 * grain + 0.3 * (grain > 1.8) - 0.3 * (grain < -1.8))[..., None]
    return Material(role, to_bytes(image), gloss)


def cloth(rng: np.random.Generator, role: str) -> Material:
    """Woven cloth: plain, striped, checked or dotted; seamless."""
    size = 192
    ground, figure = colour(rng), colour(rng)
    row, column = np.mgrid[:size, :size] / size
    image = _field(size, ground)
    style = rng.integers(4)
    count = int(rng.choice((2, 3, 4, 6)))
    if style == 1:
        image = np.where((row * count % 1 < rng.uniform(0.2, 0.5))[..., None], figure, image)
    elif style == 2:
        share = rng.uniform(0.3, 0.5)
        warp, weft = row * count % 1 < share, column * count % 1 < share
        mix = (0.5 * warp + 0.5 * weft)[..., None]
        image = image * (1 - mix) + figure * mix
    elif style == 3:
        across = np.hypot(row * count % 1 - 0.5, column * count % 1 - 0.5)
        image = np.where((across < rng.uniform(0.12, 0.3))[..., None], figure, image)
    threads = np.indices((size, size)).sum(axis=0) % 2
    image = image * (0.95 + 0.07 * threads + 0.03 * rng.normal(size=(size, size)))[..., None]
    return Material(role, to_bytes(image))


def glaze(rng: np.random.Generator, role: str) -> Material:
    """Glazes and paint: plain, speckled, banded, dipped, zigzags, crackled."""
    size = 128
    ground, figure = colour(rng), colour(rng)
    row, column = np.mgrid[:size, :size] / size
    image = _field(size, ground)
    style = rng.integers(6)
    if style == 1:
        spots = noise(rng, size, size, slope=0.6, finest=0.2) > rng.uniform(1.2, 2.0)
        image[spots] = figure
    elif style == 2:
        for _ in range(rng.integers(1, 5)):
            middle, width = rng.uniform(0.05, 0.9), rng.uniform(0.02, 0.12)
            image[np.abs(row - middle) < width / 2] = colour(rng)
    elif style == 3:  # the upper part dipped, with runs
        run = 0.04 * noise(rng, 1, size, slope=1.2)[0] + rng.uniform(0.2, 0.7)
        image[row < run[None, :]] = figure
    elif style == 4:
        teeth = np.abs(column * rng.integers(4, 10) % 1 - 0.5) * 0.16
        middle = rng.uniform(0.3, 0.7)
        image[np.abs(row - middle - teeth + 0.04) < rng.uniform(0.03, 0.08)] = figure
    elif style == 5:
        image *= (1 + 0.14 * noise(rng, size, size, slope=1.3))[..., None]
    return Material(role, to_bytes(image), gloss=float(rng.choice((0.0, 0.5, 0.8, 0.9))))


def print_(rng: np.random.Generator, role: str, *, gloss: float = 0.3) -> Material:
    """A printed face of a book, label or packet, with blocks, a figure and lines of text."""
    size = 96
    ground, ink = colour(rng), colour(rng)
    if np.abs(ground - ink).max() < 0.25:
        ink = 1 - ground
    row, column = (np.mgrid[:size, :size] + 0.5) / size
    image = _field(size, ground)
    style = rng.integers(4)
    if style == 0:  # a picture over a block of colour
        top = rng.uniform(0.3, 0.6)
        image[row > top] = colour(rng)
        image[np.hypot(row - 0.6, column - 0.5) < rng.uniform(0.1, 0.28)] = ink
    elif style == 1:  # a framed field
        inset = rng.uniform(0.05, 0.12)
        edge = np.minimum(np.minimum(row, 1 - row), np.minimum(column, 1 - column))
        image[np.abs(edge - inset) < 0.02] = ink
    elif style == 2:  # a mottled picture
        blot = noise(rng, size, size, slope=1.5)[..., None]
        image = np.where(blot > 0.2, image * (1 + 0.1 * blot), colour(rng) * (1 + 0.1 * blot))
    else:  # slanting bars
        image[(row + column) * rng.integers(2, 6) % 1 < 0.4] = colour(rng)
    for line, height in ((0.12, 0.07), (0.22, 0.07), (0.88, 0.04)):
        letters = np.kron(rng.random(16) < 0.75, np.ones(size // 16, bool))
        text = (np.abs(row - line) < height / 2) & letters[None, :] & (np.abs(column - 0.5) < 0.4)
        image[text] = ink
    return Material(role, to_bytes(image), gloss)


def pages(rng: np.random.Generator) -> Material:
    """The cut edges of a book's pages, with lines along the texture's width."""
    base = np.array([0.90, 0.86, 0.76]) * rng.uniform(0.85, 1.05)
    lines = rng.normal(1, 0.07, size=(64, 1, 1)) * np.ones((1, 8, 1))
    return Material("pages", to_bytes(base * lines))


def picture(rng: np.random.Generator) -> Material:
    """A wall picture: a landscape, coloured planes, or a smear of paint."""
    size = 128
    row, column = (np.mgrid[:size, :size] + 0.5) / size
    style = rng.integers(3)
    if style == 0:
        top, low = np.array([0.50, 0.66, 0.84]), np.array([0.92, 0.86, 0.74])
        image = top + (low - top) * row[..., None]
        for depth in range(4):  # ridges, nearer ones lower and darker
            ridge = 0.35 + 0.14 * depth + 0.05 * noise(rng, 1, size, slope=1.3)[0]
            image[row > ridge[None, :]] = colour(rng, ((0.40, 0.50, 0.34),)) * (1.3 - 0.2 * depth)
    elif style == 1:
        image = _field(size, colour(rng))
        for _ in range(rng.integers(3, 8)):
            top, left = rng.uniform(0, 0.8, 2)
            inside = (row > top) & (row < top + rng.uniform(0.1, 0.5))
            image[inside & (column > left) & (column < left + rng.uniform(0.1, 0.5))] = colour(rng)
    else:
        mix = [noise(rng, size, size, slope=1.6)[..., None] for _ in range(2)]
        image = np.where(mix[0] > 0, colour(rng), colour(rng)) * (1 + 0.15 * mix[1])
        image = np.where(mix[1] > 1, colour(rng), image)
    return Material("picture", to_bytes(image), gloss=0.2)


PAINTS = (
    (0.88, 0.86, 0.82),
    (0.78, 0.82, 0.84),
    (0.84, 0.78, 0.66),
    (0.70, 0.76, 0.70),
    (0.56, 0.62, 0.70),
    (0.80, 0.68, 0.64),
    (0.42, 0.46, 0.48),
)


def wall(rng: np.random.Generator) -> Material:
    """An inner wall, seamless: paint, striped or dotted paper, panels, tiles or bricks."""
    size = 192
    tone = colour(rng, PAINTS)
    row, column = np.mgrid[:size, :size] / size
    image = _field(size, tone) * (1 + 0.015 * noise(rng, size, size, slope=1.2))[..., None]
    style = rng.choice(6, p=[0.4, 0.14, 0.12, 0.12, 0.1, 0.12])
    count = rng.integers(5, 14)
    if style == 1:
        image[column * count % 1 < rng.uniform(0.3, 0.5)] *= rng.uniform(0.80, 0.92)
    elif style == 2:
        odd = (row * count).astype(int) % 2 / 2
        motif = np.hypot(row * count % 1 - 0.5, (column * count + odd) % 1 - 0.5)
        image[motif < 0.3] *= rng.uniform(0.75, 0.9)
        image[motif < 0.14] *= rng.uniform(1.0, 1.3)
    elif style == 3:
        image[(column * count) % 1 < count / size * 2] *= 0.75
    elif style == 4:
        joint = (row * count % 1 < 1.5 * count / size) | (column * count % 1 < 1.5 * count / size)
        image *= rng.normal(1, 0.03, size=(count + 1, count + 1))[
            (row * count).astype(int), (column * count).astype(int)
        ][..., None]
        image[joint] *= 0.75
    elif style == 5:
        return Material("wall", materials.wall(rng, "brick").texture)
    return Material("wall", to_bytes(image))


def floor(rng: np.random.Generator) -> Material:
    """Boards, tiles or carpet; seamless."""
    style = rng.integers(3)
    if style == 0:
        return wood(rng, "floor", planks=8, gloss=0.3)
    if style == 1:
        return stone(rng, "floor", gloss=0.4)
    carpet = cloth(rng, "floor").texture * rng.uniform(0.5, 0.9)
    return Material("floor", carpet.astype(np.uint8))


TABLE_TOPS: tuple[Callable[[np.random.Generator], Material], ...] = (
    lambda rng: wood(rng, "table", gloss=float(rng.choice((0.0, 0.3, 0.6)))),
    lambda rng: wood(rng, "table", planks=int(rng.integers(3, 7)), gloss=0.2),
    lambda rng: stone(rng, "table"),
    lambda rng: materials.plain("table", colour(rng, PAINTS), gloss=0.4),
)
