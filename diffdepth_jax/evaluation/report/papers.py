"""Published results, shown in grey next to ours and never presented as ours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.protocols import Protocol

# The form of predictions, which does not affect results.
_OF_PREDICTIONS = ("predicts", "prediction_frame")


@dataclasses.dataclass(frozen=True)
class Reported:
    """A published result under a protocol.

    Attributes:
        label: a word or two for the column.
        source: where it was published.
        dataset: name of the evaluated source.
        num_images: number of images averaged; None if unpublished, so that it is unknown whether
            they are the same as ours.
        options: options of the protocol or source that differ from the protocol's defaults (a tuple
            means any of its values, and None in it that the option need not be stated).
        metrics: means over all images, with our names.
        groups: the same for conditions or classes, by the group's name.
    """

    label: str
    source: str
    dataset: str
    num_images: int | None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def differences(
        self, protocol: Protocol, options: Mapping[str, Any], num_images: int
    ) -> list[str]:
        """The differing options that make these results not comparable with ours.

        Args:
            protocol, options: our result's protocol, and the options stated with it.
            num_images: number of images scored.

        Returns:
            `name=value` for each differing option, and the number of images if it differs; empty if
            the results are comparable.
        """
        stated = {"dataset": self.dataset, **self.options}
        allowed = {
            name: value if isinstance(value, tuple) else (value,) for name, value in stated.items()
        }
        ours = protocol.options | dict(options)
        # One of each option's allowed values: ours, if it is among them.
        theirs = {
            name: ours.get(name) if ours.get(name) in values else values[0]
            for name, values in allowed.items()
        }
        known = {name: theirs[name] for name in protocols.OPTIONS if name in theirs}
        expected = protocols.get(protocol.name, **known).options | theirs
        left_out = set(_OF_PREDICTIONS)
        if protocol.disparity_floor is None:  # it then follows from options that are compared
            left_out.add("disparity_floor")
        names = [name for name in (*stated, *expected) if name not in left_out]
        found = [
            f"{name}={_show(stated.get(name, expected[name]))}"
            for name in dict.fromkeys(names)
            if ours.get(name) != expected[name]
        ]
        if self.num_images is None:
            found.append("an unknown number of images")
        elif self.num_images != num_images:
            found.append(f"{self.num_images} images")
        return found


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return " or ".join(_show(each) for each in value if each is not None)
    if isinstance(value, list):
        return ", ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


_DIFFUSION_DEPTH = "DiffusionDepth paper (Duan, Guo, Zhu; ECCV 2024)"

KITTI_EIGEN = Reported(
    "paper",
    f"{_DIFFUSION_DEPTH}, KITTI Eigen 0-80 m",
    "kitti",
    652,
    # eigen_test has the same 652 frames for every kind of depth, but raw scans give other results.
    {"depth": ("groundtruth", None), "min_depth": 1e-3, "max_depth": 80.0},
    {"abs_rel": 0.050, "rmse": 2.016, "delta1": 0.977},
)
KITTI_OFFICIAL = Reported(
    "paper 0-50 m",
    f"{_DIFFUSION_DEPTH}, KITTI official 0-50 m",
    "kitti",
    1000,
    {"max_depth": 50.0},
    {"abs_rel": 0.041, "rmse": 1.418},
)
NYU = Reported(
    "paper", f"{_DIFFUSION_DEPTH}, NYUv2", "nyu", 654, {}, {"abs_rel": 0.085, "rmse": 0.295}
)
RELEASE = Reported(
    "README",
    "DiffusionDepth README, Swin on KITTI's depth-prediction split",
    "kitti",
    None,
    # Frames in KITTI's layout need not be from KITTI: rendered ones have a different depth folder.
    {"depth": "groundtruth", "min_depth": 1e-4, "max_depth": None, "alignment": "none"},
    {"abs_rel": 0.021, "rmse": 0.98},
)

# Networks before and after training on generated adverse images, from "Diffusion Models for
# Monocular Depth Estimation: Overcoming Challenging Conditions". Relative networks are aligned by
# the "LSE criterion", in an unspecified space; for ZoeDepth nothing is stated.
_ADVERSE = "Tosi, Zama Ramirez, Poggi (ECCV 2024), before and after training on generated images"
_LEAST_SQUARES = {"alignment": ("lsq_depth", "lsq_disparity", "lsq_disparity_near")}
# Every camera has 6019 images; the published results are of the front one.
_FRONT = {"cameras": (["CAM_FRONT"], None)}


def _nuscenes(network: str, when: str, *abs_rel: float) -> Reported:
    return Reported(
        f"{network} {when}",
        f"{_ADVERSE}, nuScenes val",
        "nuscenes",
        6019,
        _FRONT if network == "ZoeDepth" else _FRONT | _LEAST_SQUARES,
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


def _tom(dataset: str, num_images: int, network: str, when: str, mae_mm: float) -> Reported:
    return Reported(
        f"{network} {when}",
        f"{_ADVERSE}, {dataset}",
        dataset,
        num_images,
        _LEAST_SQUARES,
        groups={"ToM": {"mae_mm": mae_mm}},
    )


BOOSTER = (
    _tom("booster", 228, "DPT", "before", 113.14),
    _tom("booster", 228, "DPT", "after", 79.64),
    _tom("booster", 228, "Depth Anything", "before", 137.96),
    _tom("booster", 228, "Depth Anything", "after", 54.31),
)
CLEARGRASP = (
    _tom("cleargrasp", 286, "DPT", "before", 41.04),
    _tom("cleargrasp", 286, "DPT", "after", 31.32),
    _tom("cleargrasp", 286, "Depth Anything", "before", 82.22),
    _tom("cleargrasp", 286, "Depth Anything", "after", 33.88),
)

REPORTED: Mapping[str, tuple[Reported, ...]] = {
    "kitti_eigen": (KITTI_EIGEN,),
    "kitti_official": (KITTI_OFFICIAL,),
    "nyu": (NYU,),
    "nyu_release": (NYU,),
    "nuscenes": NUSCENES,
    "booster": BOOSTER,
    "cleargrasp": CLEARGRASP,
    "release": (RELEASE,),
}


def of(protocol: Protocol) -> tuple[Reported, ...]:
    """Published results for the protocol of this name, with any options."""
    return REPORTED.get(protocol.name, ())
