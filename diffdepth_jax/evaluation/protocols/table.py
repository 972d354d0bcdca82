"""Named ways to evaluate: the datasets' protocols, and what each computes.

Where published code disagrees (the crop's frame, a cap, the alignment), the disagreement is a named
option, and `Protocol.options` prints every one with the result.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffdepth_jax.errors import ConfigError, did_you_mean
from diffdepth_jax.evaluation.protocols.protocol import Protocol

# KITTI's Eigen test images with improved ground truth: 652 of the 697 in the list.
_KITTI_EIGEN = Protocol(
    name="kitti_eigen",
    min_depth=1e-3,
    max_depth=80.0,
    dataset="kitti",
    input="kb",
    crop_reference="kb",
    crop="garg",
)
# val_selection_cropped, 1000 images of 352x1216; the devkit's mask is ground-truth validity alone
# (16-bit files hold nothing below 1/256 m), so there is no cap.
_KITTI_OFFICIAL = Protocol(
    name="kitti_official",
    min_depth=1e-3,
    dataset="kitti",
)
# The official validation part: 6,019 keyframes of CAM_FRONT, lidar projected into 900x1600.
_NUSCENES = Protocol(
    name="nuscenes",
    min_depth=0.1,
    max_depth=80.0,
    input_size=(320, 576),
    resize_input="lanczos",
    resize_prediction="bilinear",
    conditions=("day-clear", "night", "day-rain"),
)
# Transparent and mirroring objects; metrics in millimetres, over all pixels and by class.
_TOM = Protocol(
    name="cleargrasp",
    min_depth=1e-3,
    max_depth=10.0,
    alignment="lsq_disparity",
    resize_prediction="bilinear",
    metric_set="millimetres",
    classes=True,
)

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _KITTI_EIGEN,
        dataclasses.replace(_KITTI_EIGEN, name="kitti_eigen_50m", max_depth=50.0),
        _KITTI_OFFICIAL,
        # The same with the metrics that the benchmark's page lists.
        dataclasses.replace(_KITTI_OFFICIAL, name="kitti_benchmark", metric_set="kitti_benchmark"),
        Protocol(
            name="nyu",
            min_depth=1e-3,
            max_depth=10.0,
            dataset="nyu",
            crop="eigen",
        ),
        # What the release of DiffusionDepth computes on NYU: 240 rows, the middle 228x304, every
        # pixel above 1e-4 m.
        Protocol(
            name="nyu_release",
            min_depth=1e-4,
            input="nyu_release",
            crop_reference="nyu_release",
        ),
        _NUSCENES,
        # 1,411 test images, 709 of them by night, by md4all's configuration.
        dataclasses.replace(
            _NUSCENES,
            name="robotcar",
            max_depth=50.0,
            input="robotcar",
            crop_reference="robotcar",
            input_size=(320, 544),
            conditions=("day", "night"),
        ),
        # DrivingStereo's weather subsets: rainy, foggy, cloudy, sunny.
        Protocol(name="drivingstereo", min_depth=1e-3, resize_prediction="bilinear"),
        # 228 images of the training part (Depth4ToM).
        dataclasses.replace(
            _TOM,
            name="booster",
            ground_truth="booster",
            alignment="lsq_disparity_near",
        ),
        # 286 real images; the range is our choice, that of `booster`.
        _TOM,
        # Whole frames with depth everywhere, such as rendered ones; not a published protocol.
        Protocol(name="dense", min_depth=1e-3, max_depth=80.0),
        # DiffusionDepth's own metric: every pixel above 1e-4 m of the whole frame.
        Protocol(name="release", min_depth=1e-4),
    )
}


def get(name: str, **options: Any) -> Protocol:
    """The protocol `name`, with the options that are not None.

    Raises:
      ConfigError: if there is no such protocol, option or value of an option.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {name!r}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name].with_options(**options)


def get_all(names: str, **options: Any) -> tuple[Protocol, ...]:
    """The protocols whose names are joined by commas, all with these options; errors as `get`."""
    found = tuple(get(name.strip(), **options) for name in names.split(","))
    if len({protocol.name for protocol in found}) < len(found):
        raise ConfigError(f"protocol is {names!r}; a name occurs twice")
    return found
