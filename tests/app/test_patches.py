"""The scene made of patches, and its file."""

import json
import struct

import numpy as np
import pytest

from diffdepth_jax.app import patches
from diffdepth_jax.inference import point_cloud
from diffdepth_jax.inference.point_cloud import Camera

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def test_a_plane_is_covered_without_gaps(monkeypatch):
    """On a receding plane, all corners are in the plane, and neighbours share edges."""
    monkeypatch.setattr(patches, "_FARTHEST", 100)
    intrinsics = Camera(field_of_view=70).matrix(12, 20)
    rays = np.linalg.inv(intrinsics) @ np.stack(
        [*np.meshgrid(np.arange(20.0), np.arange(12.0)), np.ones((12, 20))]
    ).reshape(3, -1)
    normal = np.array([0.1, 0.3, 1.0])
    depth = (5 / (normal @ rays)).reshape(12, 20)
    scene = patches.build(IMAGE, depth, intrinsics)
    x, y, z = scene.vertices.T
    np.testing.assert_allclose(normal @ np.stack([x, -y, -z]), 5, rtol=4e-3)
    corners = scene.vertices.reshape(12, 20, 4, 3)
    np.testing.assert_allclose(corners[:, :-1, 1], corners[:, 1:, 0], atol=0.05)
    np.testing.assert_allclose(corners[:-1, :, 3], corners[1:, :, 0], atol=0.05)
    np.testing.assert_array_equal(scene.colours.reshape(12, 20, 4, 3)[:, :, 2], IMAGE)


def test_the_centre_of_a_patch_is_the_point_of_its_pixel():
    depth = np.full((12, 20), 4.0, np.float32)
    depth[:, 11:] = 9.0
    depth[3, 3], depth[4, 4] = 0, np.nan
    intrinsics = Camera().matrix(12, 20)
    scene = patches.build(IMAGE, depth, intrinsics)
    points, valid = point_cloud.points(depth, intrinsics)
    middles = scene.vertices.reshape(-1, 4, 3).mean(axis=1)
    np.testing.assert_allclose(middles * (1, -1, -1), points, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(scene.colours[::4], IMAGE[valid])
    # A jump in depth is an edge: no patch spans it.
    assert np.unique(-scene.vertices[:, 2]).tolist() == [4.0, 9.0]


def test_the_farthest_and_unknown_pixels_are_left_out():
    depth = np.geomspace(1, 100, 240).reshape(12, 20)
    intrinsics = Camera().matrix(12, 20)
    assert len(patches.build(IMAGE, depth, intrinsics).vertices) == 4 * 232  # 239 * 0.97 and one
    empty = patches.build(IMAGE, np.zeros_like(depth), intrinsics)
    assert len(empty.triangles) == 0 and empty.distance == 1
    assert patches.glb(empty)[:4] == b"glTF"


def test_large_images_are_thinned(monkeypatch):
    monkeypatch.setattr(patches, "MOST_PATCHES", 60)
    scene = patches.build(IMAGE, np.full((12, 20), 2.0), Camera().matrix(12, 20))
    assert len(scene.vertices) == 4 * 60
    np.testing.assert_array_equal(scene.colours[::4].reshape(6, 10, 3), IMAGE[1::2, 1::2])


def test_the_file_is_gltf():
    """Read back by the specification, as none of the test packages reads it."""
    depth = np.random.default_rng(1).uniform(1, 9, (12, 20))
    scene = patches.build(IMAGE, depth, Camera().matrix(12, 20))
    content = patches.glb(scene)
    magic, version, length, text_length, kind = struct.unpack_from("<4sIII4s", content)
    assert (magic, version, length, kind) == (b"glTF", 2, len(content), b"JSON")
    described = json.loads(content[20 : 20 + text_length])
    data_length, kind = struct.unpack_from("<I4s", content, 20 + text_length)
    assert kind == b"BIN\0" and text_length % 4 == data_length % 4 == 0
    data = content[28 + text_length :]
    assert len(data) == data_length == described["buffers"][0]["byteLength"]

    def read(index):
        accessor = described["accessors"][index]
        view = described["bufferViews"][accessor["bufferView"]]
        dtype = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[accessor["componentType"]]
        array = np.frombuffer(
            data, dtype, offset=view["byteOffset"], count=view["byteLength"] // int(dtype[-1])
        )
        return array.reshape(accessor["count"], -1)

    (primitive,) = described["meshes"][0]["primitives"]
    np.testing.assert_array_equal(read(primitive["attributes"]["POSITION"]), scene.vertices)
    np.testing.assert_array_equal(read(primitive["indices"]).ravel(), scene.triangles.ravel())
    bounds = described["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(
        [bounds["min"], bounds["max"]], [scene.vertices.min(0), scene.vertices.max(0)]
    )
    colours = read(primitive["attributes"]["COLOR_0"]) / 65535
    assert (colours[:, 3] == 1).all()
    # sRGB 188 is half the light.
    np.testing.assert_allclose(
        patches._linear(np.array([[0, 188, 255]], np.uint8)), [[0, 0.503, 1]], atol=1e-3
    )
    np.testing.assert_allclose(colours[:, :3], patches._linear(scene.colours), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_slopes_stop_at_edges(axis):
    depth = np.array([[1.0, 2, 3, 30, 31, 30, np.nan, 5]])
    depth = depth if axis == 1 else depth.T
    slope = patches._slope(depth, axis).ravel()
    np.testing.assert_allclose(slope[:6], [1, 1, 2 * 27 / 28, 2 * 27 / 28, 0, -1])
