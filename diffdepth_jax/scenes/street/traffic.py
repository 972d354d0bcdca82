"""Parked and moving vehicles."""

from dataclasses import replace

import numpy as np

from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street import vehicles
from diffdepth_jax.scenes.street.palette import Palette
from diffdepth_jax.scenes.street.plan import BAY, START, Plan, along, sway


def _vehicle(rng: np.random.Generator, palette: Palette, space: float) -> list[Mesh]:
    """A vehicle for a lane or bay of width `space`; lorries and buses are 2.5 m wide."""
    if rng.random() < 0.16:
        return vehicles.van(rng, palette, wide=space >= 3.0)
    return vehicles.car(rng, palette)


def parked(rng: np.random.Generator, plan: Plan, side: int) -> list[Mesh]:
    """Parked cars at the kerb, with gaps in between."""
    sign = (-1, 1)[side]
    dark = replace(  # parked cars have no lights on
        plan.palette,
        beam=replace(plan.palette.beam, role="beam_off"),
        taillight=replace(plan.palette.taillight, role="taillight_off"),
    )
    meshes = []
    s = START + rng.uniform(0, 10)
    fill = rng.uniform(0.4, 0.95)
    while s < 120:
        if rng.random() < fill and not plan.crossed(s, side, margin=6.0):
            yaw = (0.0 if sign > 0 or rng.random() < 0.3 else np.pi) + rng.normal(0, 0.03)
            vehicle = _vehicle(rng, dark, BAY)
            t = sign * (plan.half + BAY / 2) + rng.normal(0, 0.1)
            meshes += plan.line.put(vehicle, s, t, 0.0, yaw, tilt=True)
        s += rng.uniform(5.4, 7.2) if s > 0 else 6.0
    return meshes


def moving(rng: np.random.Generator, plan: Plan, own: int) -> list[Mesh]:
    """Moving vehicles, with space kept free ahead of the camera in its `own` lane."""
    meshes = []
    for lane in range(plan.lanes):
        oncoming = plan.lanes > 1 and lane < plan.lanes // 2
        free_from = rng.uniform(6.5, 24) if lane == own else 1.0
        for s in along(rng, plan.style.traffic * 1.4, free_from, 130):
            if s < free_from:
                continue
            yaw = (np.pi if oncoming else 0.0) + rng.normal(0, 0.03)
            vehicle = _vehicle(rng, plan.palette, plan.lane_width)
            t = plan.lane(lane) + sway(rng, 0.15)
            meshes += plan.line.put(vehicle, s + 2.5, t, 0.0, yaw, tilt=True)
            free_from = s + rng.uniform(9, 16)
    return meshes
