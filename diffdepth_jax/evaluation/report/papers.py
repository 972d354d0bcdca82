"""Numbers that other people reported, to print in grey beside ours and never to claim."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Reported:
    """What somebody else reported under a protocol.

    Attributes:
      label: a word or two for the column.
      source: where it stands.
      dataset: the name of the source that the numbers are of.
      options: the options of the protocol or of the source under which they hold, as far as stated
        (a tuple means any of its values); under others they are not comparable, which is then said
        beside them.
      metrics: over all images, named as ours.
      groups: the same over conditions or classes, by the group's name.
    """

    label: str
    source: str
    dataset: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def differences(self, options: Mapping[str, Any]) -> list[str]:
        """In which of its conditions other options differ, as `name=value` of this one's."""
        return [
            f"{name}={_show(value)}"
            for name, value in {"dataset": self.dataset, **self.options}.items()
            if options.get(name) not in (value if isinstance(value, tuple) else (value,))
        ]


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return " or ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


_DIFFUSION_DEPTH = "DiffusionDepth paper (Duan, Guo, Zhu; ECCV 2024)"

KITTI_EIGEN = Reported(
    "paper",
    f"{_DIFFUSION_DEPTH}, KITTI Eigen 0-80 m",
    "kitti",
    {"min_depth": 1e-3, "max_depth": 80.0},
    {"abs_rel": 0.050, "rmse": 2.016, "delta1": 0.977},
)
KITTI_OFFICIAL = Reported(
    "paper 0-50 m",
    f"{_DIFFUSION_DEPTH}, KITTI official 0-50 m",
    "kitti",
    {"max_depth": 50.0},
    {"abs_rel": 0.041, "rmse": 1.418},
)
NYU = Reported("paper", f"{_DIFFUSION_DEPTH}, NYUv2", "nyu", {}, {"abs_rel": 0.085, "rmse": 0.295})
RELEASE = Reported(
    "README",
    "DiffusionDepth README, Swin on KITTI's depth-prediction split",
    "kitti",
    # Frames in KITTI's layout need not be KITTI's: rendered ones have depth of another name.
    {"depth": "groundtruth", "min_depth": 1e-4, "max_depth": None, "alignment": "none"},
    {"abs_rel": 0.021, "rmse": 0.98},
)

# Networks before and after training on generated adverse images, in "Diffusion Models for Monocular
# Depth Estimation: Overcoming Challenging Conditions". Relative ones are said to be aligned by "LSE
# criterion", which leaves open in which space; of ZoeDepth nothing is said.
_ADVERSE = "Tosi, Zama Ramirez, Poggi (ECCV 2024), before and after training on generated images"
_LEAST_SQUARES = {"alignment": ("lsq_depth", "lsq_disparity", "lsq_disparity_near")}


def _nuscenes(network: str, when: str, *abs_rel: float) -> Reported:
    return Reported(
        f"{network} {when}",
        f"{_ADVERSE}, nuScenes val",
        "nuscenes",
        {} if network == "ZoeDepth" else _LEAST_SQUARES,
        groups={
            condition: {"abs_rel": value}
            for condition, value in zip(("day-clear", "night", "day-rain"), abs_rel, strict=True)
        },
    )


NUSCENES = (
    _nuscenes("Depth Anything", "before", 0.137, 0.291, 0.167),
    _nuscenes("Depth Anything", "after", 0.134, 0.219, 0.157),
    _nuscenes("DPT", "before", 0.189, 0.354, 0.237),
    _nuscenes("DPT", "after", 0.184, 0.224, 0.199),
    _nuscenes("MiDaS", "before", 0.171, 0.261, 0.218),
    _nuscenes("MiDaS", "after", 0.168, 0.254, 0.195),
    _nuscenes("ZoeDepth", "before", 0.181, 0.258, 0.217),
    _nuscenes("ZoeDepth", "after", 0.181, 0.211, 0.199),
)


def _tom(dataset: str, network: str, when: str, mae_mm: float) -> Reported:
    return Reported(
        f"{network} {when}",
        f"{_ADVERSE}, {dataset}",
        dataset,
        _LEAST_SQUARES,
        groups={"ToM": {"mae_mm": mae_mm}},
    )


BOOSTER = (
    _tom("booster", "DPT", "before", 113.14),
    _tom("booster", "DPT", "after", 79.64),
    _tom("booster", "Depth Anything", "before", 137.96),
    _tom("booster", "Depth Anything", "after", 54.31),
)
CLEARGRASP = (
    _tom("cleargrasp", "DPT", "before", 41.04),
    _tom("cleargrasp", "DPT", "after", 31.32),
    _tom("cleargrasp", "Depth Anything", "before", 82.22),
    _tom("cleargrasp", "Depth Anything", "after", 33.88),
)
