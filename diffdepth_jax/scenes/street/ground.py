"""Road, kerbs, pavements and the land next to them."""

import numpy as np

from diffdepth_jax.scenes import materials, shapes
from diffdepth_jax.scenes.materials import Material
from diffdepth_jax.scenes.shapes import Mesh
from diffdepth_jax.scenes.street import surfaces, vehicles
from diffdepth_jax.scenes.street.plan import KERB, Plan


def ground(rng: np.random.Generator, plan: Plan, grass: Material, paving: Material) -> list[Mesh]:
    """Road, kerbs, pavements and the land on both sides."""
    line, lanes, lane_width = plan.line, plan.lanes, plan.lane_width
    edges, pavement, setbacks = plan.edges, plan.pavement, plan.setbacks
    width = edges[0] + edges[1]
    lines: list[tuple[float, str]] = []
    left = edges[0] - lanes * lane_width / 2  # the leftmost lane's left edge, from the road's edge
    middle = "dashed" if rng.random() < 0.7 else "solid"
    for lane in range(1, lanes):
        centre = 2 * lane == lanes
        lines.append((left + lane * lane_width, middle if centre else "dashed"))
    if rng.random() < 0.6:
        lines += [(left + 0.1, "solid"), (left + lanes * lane_width - 0.1, "solid")]
    if rng.random() < 0.12:
        lines = [(t, "yellow" if 2 * i + 2 == lanes else kind) for i, (t, kind) in enumerate(lines)]
    asphalt = surfaces.road(rng, width, lines, brightness=rng.uniform(0.27, 0.46))
    kerb = materials.plain("kerb", np.array([0.66, 0.65, 0.62]) * rng.uniform(0.8, 1.1))
    dirt = materials.plain("dirt", (0.42, 0.36, 0.28))
    yard = paving if max(setbacks) < (4.0 if rng.random() < 0.5 else 1.2) else grass
    meshes = [line.strip((-edges[0], edges[1]), (0, 0), asphalt, (0, 1), 12.0)]
    for side, sign in enumerate((-1, 1)):
        t = edges[side]
        bands: list[tuple[float, float, float, float, Material, float]] = []
        if pavement > 0.7:
            bands.append((t, t, 0.0, KERB, kerb, 1.0))
            bands.append((t, t + 0.15, KERB, KERB, kerb, 1.0))
            bands.append((t + 0.15, t + pavement, KERB, KERB, paving, 2.4))
        else:
            bands.append((t, t + pavement + 0.4, 0.0, KERB, dirt, 2.0))
        inner = bands[-1][1]
        flat = inner + setbacks[side] + 16.0
        bands.append((inner, flat, KERB, KERB, yard, 2.4 if yard is paving else 4.0))
        far = flat + 45.0
        bands.append((flat, far, KERB, KERB + 45.0 * line.slopes[side], grass, 6.0))
        for t0, t1, z0, z1, material, repeat in bands:
            if sign > 0:
                meshes.append(
                    line.strip((t0, t1), (z0, z1), material, (0, (t1 - t0) / repeat), repeat)
                )
            else:
                meshes.append(
                    line.strip((-t1, -t0), (z1, z0), material, (0, (t1 - t0) / repeat), repeat)
                )
    # A plane just below everything else, so that the land does not end in mid-air.
    low = min(float(mesh.vertices[:, 2].min()) for mesh in meshes) - 0.6
    reach = 700.0
    corners = [
        (-reach, -reach, low),
        (reach, -reach, low),
        (reach, reach, low),
        (-reach, reach, low),
    ]
    meshes.append(shapes.quad(corners, grass, (0, 0, reach / 4, reach / 4)))
    return meshes


def side_road(rng: np.random.Generator, plan: Plan, s: float, side: int) -> list[Mesh]:
    """A side road that joins at `s`, possibly with a waiting car."""
    line, edge, sign = plan.line, plan.edges[side], (-1, 1)[side]
    width = rng.uniform(5.5, 7.0)
    asphalt = surfaces.road(rng, width, [(width / 2, "dashed")], brightness=rng.uniform(0.28, 0.44))
    out = edge + np.array([-0.3, 0.0, 0.5, 20.0, 45.0])
    height = np.array([0.012, 0.012, KERB + 0.012, KERB + 0.012, KERB + 0.012])
    near = line.point(s - width / 2, sign * out, height)
    far = line.point(s + width / 2, sign * out, height)
    left, right = (far, near) if sign > 0 else (near, far)
    meshes = [shapes.ribbon(right, left, asphalt, np.array([0, 1]), out / 12.0)]
    if rng.random() < 0.5:  # a waiting car
        waiting = vehicles.car(rng, plan.palette)
        own_lane, t = s + sign * width / 4, sign * (edge + 3.4)
        meshes += line.put(waiting, own_lane, t, KERB, sign * np.pi / 2)
    return meshes


def zebra(plan: Plan, s: float) -> list[Mesh]:
    """A zebra crossing starting at `s`."""
    line = plan.line
    white = materials.plain("marking", (0.86, 0.86, 0.84))
    meshes = []
    for t in np.arange(-plan.edges[0] + 0.4, plan.edges[1] - 0.4 - 0.5, 1.0):
        corners = [line.point(s, t, 0.012), line.point(s, t + 0.5, 0.012),
                   line.point(s + 3, t + 0.5, 0.012), line.point(s + 3, t, 0.012)]  # fmt: skip
        meshes.append(shapes.quad(corners, white))
    return meshes
