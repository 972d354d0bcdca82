"""The line that reports the speed of prediction."""

import pytest

from diffdepth_jax.inference import progress


@pytest.mark.parametrize(
    "times, batches, line",
    [
        ([0, 4, 4], [1], "1 image in 4.0 s: 0.25 images/s, with compilation"),
        (
            [10, 14, 20],
            [2, 2, 4],
            "8 images in 10.0 s: 0.8 images/s, and 1 after the first batch, which compiles",
        ),
        ([0, 0], [], None),
    ],
)
def test_speed_is_given_for_all_images_and_for_those_after_the_first_batch(
    monkeypatch, times, batches, line
):
    clock = iter(times)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    speed = progress.Speed()
    speed.start()
    for count in batches:
        speed.add(count)
    speed.stop()
    assert speed.describe() == line
