"""A table-top as a layout: objects on the table, the room around it, and the camera."""

from collections.abc import Callable, Sequence

import numpy as np

from diffdepth_jax.scenes import shapes
from diffdepth_jax.scenes.layouts import Camera, Layout, Weather, mounted, pinhole, rgb
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.tabletop import objects, room, table
from diffdepth_jax.scenes.tabletop.arrangement import arrange, footprint


def tabletop(rng: np.random.Generator, size: tuple[int, int], focal: float) -> Layout:
    """A random table-top and the room around it.

    Args:
        rng: determines everything; equal generators give equal layouts.
        size: (height, width) of the image in pixels.
        focal: focal length relative to the image width.
    """
    height = rng.uniform(0.68, 0.80)
    top, inside, reach = table.table(rng, height)
    things = [kind(rng) for kind in _kinds(rng)]
    standing = arrange(rng, things, inside, spread=rng.uniform(0.10, 0.18))
    turn = shapes.rotation(yaw=rng.uniform(-0.5, 0.5))
    top = shapes.moved(top, (0, 0, 0), turn)
    standing = [shapes.moved(thing, (0, 0, height), turn) for thing in standing]
    camera = _camera(rng, size, focal, standing, height)
    around, panels = room.room(rng, camera, reach)
    bright = 0.02 + 0.2 * rng.random() ** 2
    tint = np.array([1.0, 1.0, 1.0]) + rng.uniform(-0.08, 0.08) * np.array([1, 0, -1])
    meshes = [mesh for thing in standing for mesh in thing]
    return Layout(
        meshes=tuple(shapes.merged([*meshes, *top, *around])),
        camera=camera,
        sky=None,
        ambient=rgb(bright * tint),
        panels=panels,
        weather=Weather(key=rng.uniform(0.2, 0.34)),
    )


def _kinds(rng: np.random.Generator) -> list[Callable[[np.random.Generator], list[Mesh]]]:
    """Objects to put on the table: at least four, and mostly vessels."""
    vessels, others = int(rng.integers(4, 10)), int(rng.integers(1, 4))
    picks = [objects.VESSELS[i] for i in rng.integers(len(objects.VESSELS), size=vessels)]
    return picks + [objects.OTHERS[i] for i in rng.integers(len(objects.OTHERS), size=others)]


def _camera(
    rng: np.random.Generator,
    size: tuple[int, int],
    focal: float,
    standing: Sequence[list[Mesh]],
    height: float,
) -> Camera:
    """A camera south of the table and above it, looking at the middle of the objects."""
    middle = np.mean([footprint(thing).mean(axis=0) for thing in standing], axis=0)
    points = np.concatenate([mesh.vertices[::5] for thing in standing for mesh in thing])
    nearest = 0.0
    while nearest < 0.3:  # a vase in front of the lens would fill the image
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
    mount = mounted(yaw, pitch, rng.normal(0, 0.015))
    return Camera(size, pinhole(size, focal), position, mount, mount)
