"""Named evaluation protocols of the data sets, and what each computes.

Where published code disagrees (the crop's frame, a cap, the alignment), there is a named option,
and `Protocol.options` reports all of them with the results.
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
# val_selection_cropped, 1000 images of 352x1216; the devkit only masks invalid ground truth (16-bit
# files have nothing below 1/256 m), so there is no cap.
_KITTI_OFFICIAL = Protocol(
    name="kitti_official",
    min_depth=1e-3,
    dataset="kitti",
)
# The official validation split: 6,019 keyframes of CAM_FRONT, with lidar projected to 900x1600.
_NUSCENES = Protocol(
    name="nuscenes",
    min_depth=0.1,
    max_depth=80.0,
    input_size=(320, 576),
    resize_input="lanczos",
    resize_prediction="bilinear",
    conditions=("day-clear", "night", "day-rain"),
)
# Transparent and mirror objects; metrics in millimetres, over all pixels and by class.
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
        # The same, with the metrics listed on the benchmark's page.
        dataclasses.replace(_KITTI_OFFICIAL, name="kitti_benchmark", metric_set="kitti_benchmark"),
        Protocol(
            name="nyu",
            min_depth=1e-3,
            max_depth=10.0,
            dataset="nyu",
            crop="eigen",
        ),
        # As in DiffusionDepth's release on NYU: 240 rows, centre crop of 228x304, all pixels above
        # 1e-4 m.
        Protocol(
            name="nyu_release",
            min_depth=1e-4,
            input="nyu_release",
            crop_reference="nyu_release",
        ),
        _NUSCENES,
        # 1,411 test images, 709 of them at night, with md4all's configuration.
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
        # 228 images of the training split (Depth4ToM).
        dataclasses.replace(
            _TOM,
            name="booster",
            ground_truth="booster",
            alignment="lsq_disparity_near",
        ),
        # 286 real images; the range is our choice, as for `booster`.
        _TOM,
        # Whole frames with dense depth, such as rendered ones; not a published protocol.
        Protocol(name="dense", min_depth=1e-3, max_depth=80.0),
        # DiffusionDepth's own metric: all pixels above 1e-4 m in the whole frame.
        Protocol(name="release", min_depth=1e-4),
    )
}


def get(name: str, **options: Any) -> Protocol:
    """The protocol `name`, with all options that are not None.

    Raises:
        ConfigError: for an unknown protocol or option, or an invalid value.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {name!r}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name].with_options(**options)


def get_all(names: str, **options: Any) -> tuple[Protocol, ...]:
    """The protocols in a comma-separated list, all with these options; errors as in `get`."""
    found = tuple(get(name.strip(), **options) for name in names.split(","))
    if len({protocol.name for protocol in found}) < len(found):
        raise ConfigError(f"protocol is {names!r}; a name occurs twice")
    return found
