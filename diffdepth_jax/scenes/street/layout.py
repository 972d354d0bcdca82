"""A street as a layout: plan, ground, surroundings, traffic, camera and sky."""

from dataclasses import replace

import numpy as np

from diffdepth_jax.scenes import shapes
from diffdepth_jax.scenes.layouts import Camera, Layout, Sky, mounted, pinhole
from diffdepth_jax.scenes.street import ground, palette, surfaces, surroundings, traffic
from diffdepth_jax.scenes.street.plan import STYLES, CentreLine, Plan, sway


def street(rng: np.random.Generator, size: tuple[int, int], focal: float) -> Layout:
    """A random street, seen from a car.

    Args:
        rng: determines everything; equal generators give equal layouts.
        size: (height, width) of the image in pixels.
        focal: focal length relative to the image width.
    """
    name = str(rng.choice(list(STYLES), p=[0.25, 0.14, 0.21, 0.14, 0.16, 0.10]))
    style = STYLES[name]
    line, materials = CentreLine(rng, style), palette.palette(rng)
    grass, paving = surfaces.grass(rng), surfaces.paving(rng)
    plan = Plan(
        name=name,
        style=style,
        line=line,
        palette=materials,
        lanes=int(rng.choice(style.lanes)),
        lane_width=rng.uniform(*style.lane_width),
        bays=(bool(rng.random() < style.parking), bool(rng.random() < style.parking)),
        pavement=rng.uniform(*style.pavement),
        setbacks=tuple(rng.uniform(*style.setback, size=2)),
    )
    meshes = ground.ground(rng, plan, grass, paving)
    if rng.random() < 0.45:
        s, side = float(rng.uniform(14, 70)), int(rng.integers(2))
        plan = replace(plan, side_road=(s, side))
        meshes += ground.side_road(rng, plan, s, side)
    if rng.random() < 0.3 and name != "country":
        meshes += ground.zebra(plan, float(rng.uniform(8, 40)))
    for side in range(2):
        meshes += surroundings.houses(rng, plan, side)
        meshes += surroundings.roadside(rng, plan, side)
        if plan.bays[side]:
            meshes += traffic.parked(rng, plan, side)
    own = plan.lanes - 1 if plan.lanes < 3 else plan.lanes - 1 - int(rng.integers(2))
    meshes += traffic.moving(rng, plan, own)
    meshes += surroundings.horizon(rng, plan)
    camera = _camera(rng, line, size, focal, plan.lane(own) + sway(rng, 0.25))
    sky = Sky(
        sun_elevation=float(np.radians(rng.uniform(18, 62))),
        sun_azimuth=float(rng.uniform(-np.pi, np.pi)),
        turbidity=float(rng.uniform(2.0, 6.0)),
        cloudiness=float(rng.beta(0.6, 0.9)),
        cloud_seed=int(rng.integers(2**31)),
    )
    return Layout(tuple(shapes.merged(meshes)), camera, sky)


def _camera(
    rng: np.random.Generator, line: CentreLine, size: tuple[int, int], focal: float, t: float
) -> Camera:
    height = rng.uniform(1.3, 2.1)
    yaw = np.radians(rng.normal(0, 4.0))
    pitch, roll = np.radians(rng.uniform(-6.0, 3.0)), np.radians(rng.normal(0, 0.8))
    vehicle = shapes.rotation(yaw=float(line.heading(0.0)), pitch=line.grade(0.0))
    mount = mounted(yaw, pitch, roll)
    return Camera(size, pinhole(size, focal), line.point(0.0, t, height), vehicle @ mount, mount)
