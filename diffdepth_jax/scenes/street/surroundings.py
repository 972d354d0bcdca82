"""Surroundings of the road: houses, plants, furniture, people, and the horizon."""

from collections.abc import Sequence

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street import buildings, furniture, plants
from diffdepth_jax.scenes.street.plan import END, KERB, START, Plan, along


def houses(rng: np.random.Generator, plan: Plan, side: int) -> list[Mesh]:
    """A row of buildings along one side."""
    sign, style, setback = (-1, 1)[side], plan.style, plan.setbacks[side]
    meshes = []
    s = START + rng.uniform(-2, 12)
    while s < 160:
        width = rng.uniform(*style.house_width)
        depth = rng.uniform(9, 14)
        kind = style.houses[rng.integers(len(style.houses))]
        own_setback = max(setback + rng.normal(0, 0.12) * setback, 0.05)
        house = buildings.building(rng, plan.palette, width, depth, kind)
        t = sign * (plan.edges[side] + max(plan.pavement, 0.5) + own_setback)
        if not plan.crossed(s + width / 2, side, margin=width / 2 + 5.0):
            meshes += plan.line.put(house, s + width / 2, t, KERB, -sign * np.pi / 2)
        s += width + rng.uniform(*style.house_gap)
    return meshes


def roadside(rng: np.random.Generator, plan: Plan, side: int) -> list[Mesh]:
    """Lamps, signs, trees, pedestrians, gardens and fences on one side."""
    name, style, palette = plan.name, plan.style, plan.palette
    edge, pavement, setback = plan.edges[side], plan.pavement, plan.setbacks[side]
    sign = (-1, 1)[side]
    facing_road = -sign * np.pi / 2
    kerb = edge + min(0.45, max(pavement * 0.3, 0.25))
    back = edge + max(pavement, 0.5)
    meshes: list[Mesh] = []

    def put(things: Sequence[Mesh], s: float, t: float, yaw: float) -> None:
        if not plan.crossed(s, side):
            meshes.extend(plan.line.put(things, s, sign * t, KERB, yaw))

    if name != "country" or rng.random() < 0.3:
        spacing, height = rng.uniform(18, 34), rng.uniform(5.5, 9.0)
        if side == 1 or rng.random() < 0.5:
            post = furniture.lamp_post(rng, palette, height)
            for s in np.arange(rng.uniform(4, spacing), 150, spacing):
                put(post, s, kerb, facing_road)
    elif side == 0 and rng.random() < 0.7:
        pole = furniture.utility_pole(palette)
        for s in np.arange(rng.uniform(6, 30), 180, 32.0):
            put(pole, s, back + 2.0, facing_road)
    for s in along(rng, 0.3, 7, 80):
        towards = 0.0 if sign > 0 or rng.random() < 0.4 else np.pi
        put(furniture.sign(rng, palette), s, kerb, towards + rng.normal(0, 0.12))
    if name in ("city", "avenue") and rng.random() < 0.4:
        put(furniture.traffic_light(rng, palette), rng.uniform(9, 35), kerb, 0.0)
    if pavement > 1.0:
        for s in along(rng, 0.15, 5, 60):
            put(furniture.bin_or_box(rng, palette), s, kerb + 0.1, facing_road)
    room = pavement - 0.8
    for s in along(rng, style.people, 4, 60):
        t = edge + 0.5 + rng.random() * max(room, 0.3)
        yaw = (0.0 if rng.random() < 0.5 else np.pi) + rng.normal(0, 0.3)
        put(furniture.person(rng, palette), s, t, yaw)
    if setback > 2.5 or pavement > 2.6 or name == "country":
        verge = kerb + 0.4 if pavement > 2.6 else back + rng.uniform(0.8, 2.0)
        plant = plants.conifer if rng.random() < 0.15 else plants.tree
        size = 0.75 if setback < 2.5 else 1.0
        for s in along(rng, style.trees, 5, 150):
            put(plant(rng, palette, size), s, verge, rng.uniform(0, 2 * np.pi))
    if setback > 2.0:
        for s in along(rng, style.garden, 2, 130):
            kind = rng.random()
            t = back + 1.2 + rng.random() * max(setback - 2.0, 0.3)
            if kind < 0.55:
                put(plants.bush(rng, palette), s, t, rng.uniform(0, 2 * np.pi))
            elif kind < 0.85 and setback > 4:
                put(plants.tree(rng, palette, rng.uniform(0.5, 1.0)), s, t, 0.0)
            elif setback > 4:
                put(plants.conifer(rng, palette, rng.uniform(0.4, 0.9)), s, t, 0.0)
        if rng.random() < style.fence:
            kinds = (
                ("rail", "pickets") if name == "country" else ("pickets", "wall", "hedge", "hedge")
            )
            barrier = kinds[rng.integers(len(kinds))]
            length = 6.0
            if barrier == "hedge":
                piece = plants.hedge(rng, palette, length, rng.uniform(0.8, 1.9))
            else:
                piece = furniture.fence(rng, palette, length, barrier)
            distance = edge + 0.8 if barrier == "rail" else back + 0.35
            for s in np.arange(START, 110, length):
                if rng.random() < 0.88:  # gates
                    put(piece, s, distance, facing_road)
    return meshes


def horizon(rng: np.random.Generator, plan: Plan) -> list[Mesh]:
    """The background: buildings, woods and hills beyond 165 m."""
    line, palette = plan.line, plan.palette
    meshes = []
    end = line.point(END, 0.0)
    base = end[2]
    if plan.name in ("city", "avenue", "works") or rng.random() < 0.3:
        for _ in range(10):
            t = rng.uniform(-130, 130)
            if abs(t) < 9:
                continue
            block = buildings.building(rng, palette, rng.uniform(14, 26), 12.0, "block")
            meshes += line.put(block, rng.uniform(165, 215), t, -1.0, 0.0)
    leaves = palette.foliage[rng.integers(len(palette.foliage))]
    for angle in np.linspace(-1.25, 1.25, 46):  # a belt of trees around the far end
        distance = 200 + rng.uniform(-15, 25)
        x, y = distance * np.sin(angle), distance * np.cos(angle)
        if np.hypot(x - end[0], y - end[1]) < 14:
            continue
        radius = rng.uniform(6, 10)
        meshes.append(
            shapes.ball(
                (radius, radius, radius * rng.uniform(0.6, 1.0)),
                (x, y, base * rng.uniform(0.5, 1.0) + 1.0),
                leaves,
                rng=rng,
                bumps=0.25,
            )
        )
    if rng.random() < 0.5:  # hills behind
        hill = materials.plain("hill", np.array([0.40, 0.47, 0.47]) * rng.uniform(0.8, 1.15))
        for _ in range(5):
            angle = rng.uniform(-1.0, 1.0)
            radius = rng.uniform(60, 140)
            meshes.append(
                shapes.ball(
                    (radius, radius * 0.5, radius * rng.uniform(0.12, 0.28)),
                    (520 * np.sin(angle), 520 * np.cos(angle), base - 2.0),
                    hill,
                    rng=rng,
                    bumps=0.2,
                    steps=(12, 20),
                )
            )
    return meshes
