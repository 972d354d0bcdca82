"""Depth of videos."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import visualize
from diffdepth_jax.errors import ConfigError, FileError
from diffdepth_jax.inference import ffmpeg, video
from diffdepth_jax.inference.results import Results
from diffdepth_jax.typing import InputSpec
from tests.inference.small_model import image
from tests.inference.videos import RATE, gradients, make_video

pytest.importorskip("imageio_ffmpeg")

PROJECT = Path(__file__).resolve().parents[2]


class Reddish:
    """Predicts from the red channel: metres, or relative disparity."""

    input_spec = InputSpec()

    def __init__(self, output="metric_depth"):
        self.output = output
        self.batches = []

    def check_num_samples(self, num_samples):
        assert num_samples > 1

    def predict(self, images, *, batch_size, num_samples=None, **_):
        self.batches.append(len(images))
        found = [1 + each[..., 0].astype(np.float32) / 5 for each in images]
        return (found, [each / 10 for each in found]) if num_samples else found


def read(path):
    return list(ffmpeg.frames(ffmpeg.open_video(path)))


@pytest.mark.parametrize("output", ["metric_depth", "relative_disparity"])
def test_all_frames_share_one_colour_scale(tmp_path, output):
    frames = gradients(13)
    model, path = Reddish(output), make_video(tmp_path / "clip.mp4", frames)
    assert video.predict_videos(model, [path], tmp_path / "out", Results(output, ())) == []
    assert os.listdir(tmp_path / "out") == ["clip_depth.mp4"]
    written = ffmpeg.open_video(tmp_path / "out/clip_depth.mp4")
    assert (written.height, written.width, written.rate) == (24, 40, RATE)
    found = read(written.path)
    depths = model.predict(frames, batch_size=1)
    metric = output == "metric_depth"
    range_of = visualize.depth_range if metric else visualize.disparity_range
    colour = visualize.colour_depth if metric else visualize.colour_disparity
    lows, highs = zip(*map(range_of, depths), strict=True)
    assert len(found) == 13
    for shown, depth in zip(found, depths, strict=True):
        expected = colour(depth, min(lows), max(highs)).astype(int)
        assert np.abs(shown - expected).mean() < 4
    # With a scale per frame they would all look the same.
    assert np.abs(found[0].astype(int) - found[-1]).mean() > 40


def test_every_frame_has_files_of_the_chosen_formats(tmp_path, model):
    frames = gradients(5)
    path = make_video(tmp_path / "in" / "clip.mp4", frames)
    results = Results(model.output, ("npy", "png", "ply"), pictures=False)
    # Leftovers of an earlier run are removed.
    (tmp_path / "clip_depth").mkdir()
    for name in ("000007.npy", "000001_spread.exr"):
        (tmp_path / "clip_depth" / name).touch()
    assert video.predict_videos(model, [path], tmp_path, results, batch_size=2) == []
    names = sorted(os.listdir(tmp_path / "clip_depth"))
    assert names == [f"00000{i}.{suffix}" for i in range(5) for suffix in ("npy", "ply", "png")]
    for index, frame in enumerate(frames):
        depth = np.load(tmp_path / "clip_depth" / f"00000{index}.npy")
        np.testing.assert_allclose(depth, model.predict(frame), rtol=1e-5)
    assert sorted(os.listdir(tmp_path)) == ["clip_depth", "clip_depth.mp4", "in"]


def test_samples_write_the_spread_of_every_frame(tmp_path):
    path = make_video(tmp_path / "clip.mp4", gradients(3))
    model, results = Reddish(), Results("metric_depth", ("npy",), pictures=False)
    video.predict_videos(model, [path], tmp_path / "out", results, num_samples=2)
    depth, spread = (
        np.load(tmp_path / f"out/clip_depth/000002{ending}.npy") for ending in ("", "_spread")
    )
    np.testing.assert_allclose(spread, depth / 10)


def test_an_interrupted_video_leaves_earlier_results(tmp_path, monkeypatch):
    path = make_video(tmp_path / "clip.mp4", gradients(12))
    model, results = Reddish(), Results("metric_depth", ("npy",), pictures=False)
    output = tmp_path / "out"
    video.predict_videos(model, [path], output, results)
    before = {each: each.stat().st_mtime_ns for each in output.rglob("*")}
    predict = model.predict

    def interrupted(images, **options):
        if len(model.batches) == 10:
            raise KeyboardInterrupt
        return predict(images, **options)

    monkeypatch.setattr(model, "predict", interrupted)
    model.batches.clear()
    with pytest.raises(KeyboardInterrupt, match=r"\d of 12 frames of .*clip\.mp4 were done"):
        video.predict_videos(model, [path], output, results)
    assert {each: each.stat().st_mtime_ns for each in output.rglob("*")} == before


def test_a_video_that_cannot_be_finished_leaves_no_frames(tmp_path, monkeypatch):
    path = make_video(tmp_path / "clip.mp4", gradients(3))
    original = ffmpeg.writing

    @contextlib.contextmanager
    def full(target, *size, name):
        with original(target, *size, name=name) as write:
            yield write
        raise FileError(f"{name} cannot be written: No space left")  # at the very end

    monkeypatch.setattr(ffmpeg, "writing", full)
    results = Results("metric_depth", ("npy",), pictures=False)
    with pytest.raises(FileError, match=r"out/clip_depth\.mp4 cannot be written"):
        video.predict_videos(Reddish(), [path], tmp_path / "out", results)
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_existing_results_are_skipped_on_request(tmp_path):
    paths = [make_video(tmp_path / f"{name}.mp4", gradients(3)) for name in "ab"]
    model, results = Reddish(), Results("metric_depth", ("npy",), pictures=False)
    video.predict_videos(model, paths, tmp_path / "out", Results("metric_depth", ()))
    # Without their files the frames do not count as done.
    video.predict_videos(model, paths[:1], tmp_path / "out", results, skip_existing=True)
    assert len(list((tmp_path / "out/a_depth").iterdir())) == 3
    model.batches.clear()
    video.predict_videos(model, paths, tmp_path / "out", results, skip_existing=True)
    assert sum(model.batches) == 3 + 3  # only of b, for the colours and for the results


def test_files_of_the_user_are_not_replaced(tmp_path):
    path = make_video(tmp_path / "clip.mp4", gradients(2))
    (tmp_path / "clip_depth").mkdir()
    (tmp_path / "clip_depth" / "notes.txt").write_text("mine")
    results = Results("metric_depth", ("npy",), pictures=False)
    with pytest.raises(FileError, match=r"clip_depth holds notes\.txt.*another output directory"):
        video.predict_videos(Reddish(), [path], tmp_path, results)
    assert os.listdir(tmp_path / "clip_depth") == ["notes.txt"]
    other = path.rename(tmp_path / "clip_depth.mp4")
    again = make_video(tmp_path / "clip.mp4", gradients(2))
    before = other.read_bytes()
    with pytest.raises(ConfigError, match="would overwrite"):
        video.predict_videos(Reddish(), [again, other], tmp_path, results)
    assert other.read_bytes() == before


def test_an_unreadable_video_is_skipped(tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("not a video")
    good = make_video(tmp_path / "b.mp4", gradients(2))
    failures = video.predict_videos(
        Reddish(), [tmp_path / "a.mp4", good], tmp_path / "out", Results("metric_depth", ())
    )
    assert len(failures) == 1 and failures[0] in capsys.readouterr().err
    assert re.match(r"skipped .*a\.mp4.*cannot be read as a video", failures[0])
    assert os.listdir(tmp_path / "out") == ["b_depth.mp4"]


@pytest.mark.parametrize("count", [0, 1, 5, 16, 17, 31, 32, 33, 100, 1000])
def test_some_items_are_spread_out_over_all(count):
    counted, kept = video.spread_out(iter(range(count)), 16)
    assert counted == count and len(kept) == len(set(kept)) <= 16
    assert len(kept) == count if count <= 16 else len(kept) >= 8
    assert len(set(np.diff(kept))) <= 1 and kept[:1] == [0][:count]


def test_a_video_that_is_gone_is_skipped(tmp_path, capsys):
    good = make_video(tmp_path / "b.mp4", gradients(2))
    gone = tmp_path / "a.mp4"
    gone.symlink_to(tmp_path / "nowhere.mp4")
    out = tmp_path / "out"
    failures = video.predict_videos(Reddish(), [gone, good], out, Results("metric_depth", ()))
    assert failures == capsys.readouterr().err.splitlines()
    assert len(failures) == 1 and "a.mp4" in failures[0]
    assert os.listdir(out) == ["b_depth.mp4"]


def test_predict_script_takes_videos(run, tmp_path):
    path = make_video(tmp_path / "clip.mp4", gradients(4))

    def start(*arguments):
        command = [sys.executable, "predict.py", f"--checkpoint={run}", f"--output={tmp_path}/out"]
        command += arguments
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)

    done = start(f"--input={path}", "--format=npy,ply", "--fov=75")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    says, camera, speed = done.stdout.splitlines()
    assert says.endswith("predicts depth in metres")
    assert camera == "point clouds: assumed horizontal field of view: 75 degrees"
    assert re.match(r"4 frames in [\d.]+ s: [\d.e+]+ frames/s, and", speed)
    assert len(os.listdir(tmp_path / "out/clip_depth")) == 8
    Image.fromarray(image(16, 24)).save(tmp_path / "photo.png")
    for arguments, says in {
        (f"--input={tmp_path}/*.*",): "matches both images and videos",
        (f"--input={path}", "--fov=60"): "--fov is for point clouds and needs --format=ply",
    }.items():
        done = start(*arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert says in done.stderr
