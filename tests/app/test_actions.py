"""What happens on the page, without a browser."""

import re

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.app.checkpoints import Checkpoints
from diffdepth_jax.app.uploads import Limits
from diffdepth_jax.errors import WeightsError
from diffdepth_jax.inference.point_cloud import FIELD_OF_VIEW

gradio = pytest.importorskip("gradio", reason="the page needs Gradio: make test-app")

from diffdepth_jax.app.actions import SCENE_TAB, Actions, Outputs  # noqa: E402


@pytest.fixture
def models(denoising, relative):
    return {"denoising": denoising, "relative": relative}


@pytest.fixture
def actions(models, tmp_path):
    def load(path):
        if path.name not in models:
            raise WeightsError(f"{path.name} is <b>damaged</b>:\ncopy it again")
        return models[path.name]

    paths = [tmp_path / name for name in (*models, "damaged")]
    for path in paths:
        path.touch()
    (tmp_path / "files").mkdir()
    return Actions(Checkpoints(paths, load), Limits(megapixels=0.01), tmp_path / "files")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((38, 23), 80).save(path)
    return path


def predict(actions, path, name, steps=None, samples=1, seed=0):
    values = actions.predict(path and str(path), name, steps, samples, seed, FIELD_OF_VIEW)
    return Outputs(*values)


def test_options_are_those_of_the_checkpoint(actions):
    facts, steps, samples = actions.choose("denoising")
    assert "2 denoising steps" in facts
    assert (steps["choices"], steps["value"], steps["visible"]) == ([2], 2, False)
    assert samples["visible"]
    facts, steps, samples = actions.choose("relative")
    assert "relative disparity" in facts
    assert (steps["choices"], steps["value"], samples["visible"]) == ([], None, False)
    facts, *others = actions.choose("damaged")
    assert 'class="message error"' in facts and "&lt;b&gt;damaged&lt;/b&gt;: copy it" in facts
    assert not any(each["visible"] for each in others)


def test_a_photo_fills_the_page(actions, models, photo):
    found = predict(actions, photo, "denoising", steps=2, samples=2)
    assert "38 x 23 pixels" in found.message and found.tabs["visible"]
    assert found.steps_tab["visible"] and found.spread_tab["visible"]
    assert (found.step["maximum"], found.step["value"]) == (2, 2)
    names = [path.rpartition("photo")[2] for path in found.downloads]
    assert {".npy", ".png", ".ply", "_spread.npy"} <= set(names)

    picture, caption = actions.step(1, found.memory)
    assert "after step 1 of 2" in caption and picture != found.step_picture
    assert actions.step(3, found.memory) == actions.step(1, None) == (None, "")
    assert len(found.memory.prediction.steps) == 0  # only pictures of them are kept
    found.memory.pictures.steps[0].unlink()  # as after an hour
    assert "predict again" in actions.step(1, found.memory)[1]

    found = predict(actions, photo, "relative", steps=2, samples=2)
    assert not found.steps_tab["visible"] and not found.spread_tab["visible"]
    assert "no scale and no shift" in found.scene_note
    assert np.load(
        next(path for path in found.downloads if path.endswith(".npy"))
    ) == pytest.approx(models["relative"].predict(photo))


def test_the_scene_is_drawn_only_while_its_tab_is_open(actions, photo):
    memory = predict(actions, photo, "relative").memory
    assert actions.scene("Depth", 60, memory) == actions.scene(SCENE_TAB, 60, None) == gradio.skip()
    narrow, wide = (actions.scene(SCENE_TAB, angle, memory) for angle in (30, 90))
    assert narrow["value"] != wide["value"]
    assert narrow["camera_position"][2] > 0
    assert actions.downloads(60, None) == gradio.skip()


def test_another_field_of_view_changes_the_point_cloud(actions, photo):
    memory = predict(actions, photo, "denoising").memory
    clouds = [
        next(path for path in actions.downloads(angle, memory) if path.endswith(".ply"))
        for angle in (30, 90)
    ]
    for path, angle in zip(clouds, (30, 90), strict=True):
        with open(path, "rb") as file:
            assert re.search(rb"field of view: (\d+) degrees", file.read())[1] == b"%d" % angle


def test_errors_are_one_line_and_clear_the_page(actions, photo, tmp_path):
    (tmp_path / "no_image.png").touch()
    Image.new("L", (200, 200)).save(tmp_path / "large.png")
    for path, name, text in (
        (tmp_path / "no_image.png", "denoising", "no_image.png is not an image"),
        (tmp_path / "large.png", "denoising", "at most 0.01 megapixels"),
        (photo, "damaged", "copy it again"),
        (photo, "unknown", "no checkpoint &#x27;unknown&#x27;"),
    ):
        found = predict(actions, path, name)
        assert 'class="message error"' in found.message and text in found.message
        assert "\n" not in found.message and str(tmp_path) not in found.message
        assert found.tabs["visible"] is False
        assert found.memory is found.downloads is found.compared is None
    assert "error" not in predict(actions, None, "denoising").message
