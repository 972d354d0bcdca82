from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax.data.sources import mapillary
from diffdepth_jax.errors import DataError, MissingFileError


def test_images(
    tmp_path: Path, make_frame: Callable, save_image: Callable, check_contract: Callable
) -> None:
    for part, names in (("training", ("b", "a")), ("validation", ("c",))):
        for number, name in enumerate(names):
            image = make_frame(number, (20 + number, 30))[0]
            save_image(tmp_path / part / "images" / f"{name}.jpg", image)
    (tmp_path / "testing/images").mkdir(parents=True)
    frames = mapillary.source("train", tmp_path)
    check_contract(frames)
    assert [frame["id"] for frame in frames] == ["a", "b"]
    assert frames[0]["image"].shape == (21, 30, 3) and frames[0]["condition"] == "unknown"
    assert frames[0]["depth"].shape == (21, 30) and not frames[0]["depth"].any()
    assert np.isnan(frames[0]["intrinsics"]).all()
    assert len(mapillary.source("val", tmp_path)) == 1
    with pytest.raises(DataError, match=r"no frames in split 'test' of .*: unpack Mapillary"):
        mapillary.source("test", tmp_path)
    (tmp_path / "testing/images").rmdir()
    with pytest.raises(MissingFileError, match=r"testing/images .*unpack"):
        mapillary.source("test", tmp_path)
