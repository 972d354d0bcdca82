"""Files from strangers."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.app import uploads
from diffdepth_jax.app.uploads import Limits
from diffdepth_jax.errors import ConfigError, DataError, UserError


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_an_image_within_the_limits_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for ending in ("png", "webp", "bmp", "tiff", "ppm"):
        path = saved(Image.fromarray(pixels), tmp_path / f"photo.{ending}", lossless=True)
        upload = uploads.read(path, Limits())
        assert (upload.name, upload.original_size) == ("photo", (20, 30))
        np.testing.assert_array_equal(upload.image, pixels, err_msg=ending)


def test_a_large_image_is_shrunk(tmp_path):
    path = saved(Image.new("RGB", (3000, 1000), (9, 90, 200)), tmp_path / "wide.png")
    upload = uploads.read(path, Limits(shrink_megapixels=0.03))
    assert upload.original_size == (1000, 3000)
    assert upload.image.shape == (100, 300, 3)
    np.testing.assert_array_equal(upload.image[50, 150], (9, 90, 200))
    thin = saved(Image.new("L", (4000, 1)), tmp_path / "thin.png")
    assert uploads.read(thin, Limits(shrink_megapixels=1e-3)).image.shape == (1, 2000, 3)


def test_a_photo_is_rotated_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    path = saved(Image.new("RGB", (40, 20)), tmp_path / "photo.jpg", exif=exif)
    assert uploads.read(path, Limits()).image.shape == (40, 20, 3)


def png(width, height):
    """The start of a PNG, with its size but without pixels."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"none")


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    """The pixels are missing, so decoding would fail in another way."""
    path = tmp_path / "large.png"
    for width, height in ((8000, 7000), (9000, 12000), (60000, 60000)):
        path.write_bytes(png(width, height))
        with pytest.raises(DataError, match=r"^large\.png has .* pixels; at most 50 megapixels"):
            uploads.read(path, Limits())
    path.write_bytes(png(100, 100))
    with pytest.raises(DataError, match=r"^large\.png cannot be read .*truncated or damaged"):
        uploads.read(path, Limits())


def test_a_file_that_is_not_an_image_is_refused_in_one_line_without_its_folder(tmp_path):
    def jpeg():
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).save(buffer, "jpeg")
        return buffer.getvalue()

    contents = {
        "text.png": b"hello",
        "empty.jpg": b"",
        "script.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "half.jpg": jpeg()[:700],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    saved(Image.fromarray(np.ones((4, 4), np.uint16)), tmp_path / "depth.png")
    for name in (*contents, "depth.png", "missing.png"):
        with pytest.raises(UserError) as error:
            uploads.read(tmp_path / name, Limits())
        message = str(error.value)
        assert message.startswith(name) and "\n" not in message
        assert str(tmp_path) not in message


def test_large_files_are_refused(tmp_path):
    path = saved(Image.effect_noise((100, 100), 50), tmp_path / "noise.png")
    assert path.stat().st_size > 5000
    with pytest.raises(DataError, match=r"^noise\.png has 0\.0 MB; at most 0\.005 MB"):
        uploads.read(path, Limits(megabytes=0.005))


@pytest.mark.parametrize("name", ["megabytes", "megapixels", "shrink_megapixels"])
def test_limits_are_positive_numbers(name):
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=rf"{name} is {value}; it must be positive"):
            Limits(**{name: value})
