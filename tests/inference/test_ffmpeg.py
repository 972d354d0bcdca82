"""Videos read and written with ffmpeg."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from diffdepth_jax import atomic
from diffdepth_jax.errors import DataError, FileError, MissingFileError, MissingPackageError
from diffdepth_jax.inference import ffmpeg
from tests.inference.videos import RATE, gradients, make_video

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def test_frames_are_read_unchanged(tmp_path):
    frames = gradients(11)
    video = ffmpeg.open_video(make_video(tmp_path / "50% of it: a.mp4", frames))
    assert (video.height, video.width, video.rate) == (24, 40, RATE)
    found = list(ffmpeg.frames(video))
    np.testing.assert_array_equal(found, frames)


def test_frames_are_upright(tmp_path):
    frames = gradients(3)
    flat = make_video(tmp_path / "flat.mp4", frames)
    turned = tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90"]
    subprocess.run([*command, "-i", str(flat), "-c", "copy", str(turned)], check=True)
    video = ffmpeg.open_video(turned)
    assert (video.height, video.width) == (40, 24)
    np.testing.assert_array_equal(list(ffmpeg.frames(video)), [np.rot90(each) for each in frames])


def test_reading_can_end_early(tmp_path, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda *args, **options: started.append(popen(*args, **options)) or started[-1],
    )
    video = ffmpeg.open_video(make_video(tmp_path / "a.mp4", gradients(9, 240, 320)))
    frames = ffmpeg.frames(video)
    next(frames)
    assert started[-1].poll() is None  # ffmpeg waits for its reader
    frames.close()
    assert started[-1].poll() is not None


@pytest.mark.parametrize("height, width", [(24, 40), (23, 41)])
def test_a_written_video_has_the_right_size_rate_and_colours(tmp_path, height, width):
    frames = gradients(8, height, width)
    with ffmpeg.writing(tmp_path / "a.mp4", height, width, RATE) as write:
        for frame in frames:
            write(frame)
    video = ffmpeg.open_video(tmp_path / "a.mp4")
    assert (video.height, video.width, video.rate) == (height, width, RATE)
    found = np.array(list(ffmpeg.frames(video)), int)
    assert np.abs(found - frames).mean() < 3 and len(found) == len(frames)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        atomic.replacing(path) as temporary,
        ffmpeg.writing(temporary, 24, 40, RATE) as write,
    ):
        write(gradients(1)[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
@pytest.mark.parametrize("reads", ["", "cat > /dev/null;"])
def test_a_video_that_ffmpeg_cannot_write_is_an_error_with_its_reason(tmp_path, monkeypatch, reads):
    """ffmpeg stops at once, or only at the end."""
    script = tmp_path / "ffmpeg"
    script.write_text(f"#!/bin/sh\n{reads} echo 'one'>&2; echo 'No space left' >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with (
        pytest.raises(FileError, match=r"a\.mp4 cannot be written: No space left$"),
        atomic.replacing(tmp_path / "a.mp4") as temporary,
        ffmpeg.writing(temporary, 240, 400, RATE, name=tmp_path / "a.mp4") as write,
    ):
        for frame in gradients(20, 240, 400):
            write(frame)
    assert not (tmp_path / "a.mp4").exists()


def test_a_file_that_is_not_a_video_is_named_with_the_reason(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(DataError, match=r"a\.mp4 cannot be read as a video: .*Invalid data"):
        ffmpeg.open_video(tmp_path / "a.mp4")
    with pytest.raises(MissingFileError, match=r"b\.mp4"):
        ffmpeg.open_video(tmp_path / "b.mp4")


def test_a_truncated_video_is_read_to_its_end_with_a_warning(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(9)]
    whole = make_video(tmp_path / "a.mkv", frames)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.warns(UserWarning, match=r"a\.mkv is damaged: "):
        found = list(ffmpeg.frames(ffmpeg.open_video(whole)))
    assert 2 <= len(found) < 9
    np.testing.assert_array_equal(found[0], frames[0])


def test_a_time_base_is_not_mistaken_for_a_frame_rate(tmp_path):
    path = make_video(tmp_path / "a.mkv", gradients(3), "-r", "1000", "-fps_mode", "cfr")
    with pytest.raises(DataError, match=r"variable frame rate.*ffmpeg -i IN -r 30"):
        ffmpeg.open_video(path)


def test_the_error_names_the_package_that_videos_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'diffdepth_jax\[video\]'"):
        ffmpeg.executable()


def test_starting_ffmpeg_causes_no_warning_from_jax(tmp_path):
    import jax

    jax.numpy.zeros(1).block_until_ready()  # with its threads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        video = ffmpeg.open_video(make_video(tmp_path / "a.mp4", gradients(2)))
        assert len(list(ffmpeg.frames(video))) == 2
    assert Path(ffmpeg.executable()).exists()
