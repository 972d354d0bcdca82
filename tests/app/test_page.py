"""The page in headless Chromium, served by the tool as a process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.app.uploads import Limits
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference.point_cloud import FIELD_OF_VIEW

PROJECT = Path(__file__).resolve().parents[2]
SAMPLE = PROJECT / "sample/raw/2000_01_03/2000_01_03_drive_0003_sync/image_02/data/0000000005.jpg"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# 3-D drawing without a graphics card, and no other server's name resolves.
FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE = 120_000  # milliseconds to wait for a condition on a busy machine

pytest.importorskip("gradio", reason="the page needs Gradio: make test-app")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright drives the browser: make test-app"
)

from diffdepth_jax.app import page as app  # noqa: E402


@pytest.fixture(scope="module")
def server(files, tmp_path_factory):
    """The address of a running page with small limits, and its folder for temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "tools/app.py", *(f"--checkpoint={path}" for path in files)]
    command += ["--field=max_depth=80.0", "--max_megapixels=0.1", "--max_megabytes=0.2"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line.startswith("open http://127.0.0.1:"), line
    yield line.split()[1], folder
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(server, browser):
    """The page as a visitor finds it; requests to other servers and script errors fail the test."""
    address, _ = server
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    page.get_by_text("denoising steps").first.wait_for()
    yield page
    context.close()
    assert faults == []
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()


def show(page, path):
    page.set_input_files("#image input[type=file]", path)


def message(page, text):
    """Waits until the line above the results contains a text."""
    page.locator("#message").get_by_text(text).wait_for()


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def tabs(page):
    return [tab.inner_text() for tab in page.get_by_role("tab").all()]


def test_depth_denoising_scene_and_files(page, denoising, tmp_path):
    show(page, SAMPLE)
    message(page, "208 x 64 pixels")
    assert tabs(page) == ["Depth", "Denoising", "3-D", "Files"]
    pictures = page.locator("#compared img")
    pictures.nth(1).wait_for()
    sizes = pictures.evaluate_all("all => all.map(each => [each.naturalWidth, each.naturalHeight])")
    assert sizes == [[208, 64], [208, 64]]

    # Moving the line in the middle to the right leaves less of the depth.
    shown = "() => document.querySelectorAll('#compared img')[1].style.clipPath"
    page.wait_for_function(f"({shown})().includes('50%')")
    line = page.locator("#compared [data-testid=slider] .icon-wrap").bounding_box()
    x, y = line["x"] + line["width"] / 2, line["y"] + line["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 200, y, steps=5)
    page.mouse.up()
    page.wait_for_function(f"parseFloat(({shown})().match(/([0-9.]+)%/)[1]) > 60")

    open_tab(page, "Denoising")
    caption, picture = page.locator("#step_caption"), page.locator("#step_picture img")
    count = denoising.model.num_inference_steps
    caption.get_by_text(f"after step {count} of {count}").wait_for()
    last = picture.get_attribute("src")
    page.locator("#step input[type=range]").fill("1")
    caption.get_by_text(f"after step 1 of {count}: depth differs by").wait_for()
    page.wait_for_function(
        "last => document.querySelector('#step_picture img').getAttribute('src') != last", arg=last
    )

    open_tab(page, "3-D")
    page.locator("#scene canvas").wait_for()
    page.wait_for_function("() => document.querySelector('#scene canvas').width > 100")
    for _ in range(1000):  # until the scene is drawn
        page.wait_for_function("() => new Promise(requestAnimationFrame)")
        page.locator("#scene canvas").screenshot(path=tmp_path / "scene.png")
        with Image.open(tmp_path / "scene.png") as drawn:
            if len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 100:
                break
    else:
        pytest.fail("the scene is not drawn")

    open_tab(page, "Files")
    for ending in (".npy", ".png", ".ply"):
        page.locator(f"#files a[download$='{ending}']").first.wait_for()
    with page.expect_download() as started:
        page.locator("#files a[download$='.npy']").click()
    with Image.open(SAMPLE) as image:
        expected = denoising.predict(image)
    depth = np.load(started.value.path())
    np.testing.assert_allclose(depth, expected, rtol=1e-4)


def test_the_last_of_several_tabs_opened_quickly_is_filled(page):
    show(page, SAMPLE)
    message(page, "208 x 64 pixels")
    for name in ("Denoising", "Files", "Depth", "3-D"):
        open_tab(page, name)
    page.locator("#scene canvas").wait_for()


def test_the_scene_is_shown_even_if_the_previous_tab_is_still_pending(page):
    held = []

    def asks_for_scene(request):
        return json.loads(request.post_data or "{}").get("data", [])[1:2] == [FIELD_OF_VIEW]

    def hold_first(route):
        """Holds back the first answer, which is that no scene is needed."""
        if asks_for_scene(route.request) and not held:
            held.append((route, route.fetch()))
        else:
            route.continue_()

    with page.expect_response(lambda response: asks_for_scene(response.request)):
        show(page, SAMPLE)
        message(page, "208 x 64 pixels")
    page.route("**/run/predict", hold_first)
    open_tab(page, "Files")
    while not held:
        page.wait_for_timeout(10)
    open_tab(page, "3-D")
    page.locator("#scene").wait_for()
    route, answer = held[0]
    route.fulfill(response=answer)
    page.locator("#scene canvas").wait_for()


def test_the_scene_is_asked_for_again_if_the_viewer_stays_empty(page):
    loads = []

    def fail_once(route):
        loads.append(route)
        route.abort() if len(loads) == 1 else route.continue_()

    page.route("**/assets/Canvas3D-*.js", fail_once)
    page.evaluate("addEventListener('unhandledrejection', (event) => event.preventDefault())")
    show(page, SAMPLE)
    message(page, "208 x 64 pixels")
    open_tab(page, "3-D")
    page.locator("#scene canvas").wait_for()
    assert len(loads) == 2


def test_an_example_is_one_click_away(page):
    page.locator(".gallery-item").first.click()
    message(page, "208 x 64 pixels")
    page.locator("#compared img").nth(1).wait_for()


def test_relative_disparity_is_not_called_metres(page):
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name="relative").click()
    page.locator("#facts").get_by_text("relative disparity").wait_for()
    show(page, SAMPLE)
    message(page, "relative disparity")
    assert tabs(page) == ["Depth", "3-D", "Files"]
    page.get_by_text("relative, no unit").wait_for()
    open_tab(page, "3-D")
    page.get_by_text("no scale and no shift").wait_for()
    open_tab(page, "Files")
    page.locator("#files a[download$='.npy']").wait_for()
    assert page.locator("#files a[download$='.ply']").count() == 0


def test_refused_uploads_give_a_one_line_message(page, tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_bytes(b"<b>no image</b>")
    Image.effect_noise((500, 500), 90).save(tmp_path / "noise.png")
    show(page, tmp_path / "wide.png")
    message(page, "wide.png has 400 x 300 pixels; at most 0.1 megapixels are accepted")
    for name, text in (
        ("text.png", "text.png is not an image that can be read here"),
        (SAMPLE, "208 x 64 pixels"),  # the page still works
    ):
        page.locator("#image button[aria-label*=Remove], #image button[aria-label=Clear]").click()
        message(page, "Drop an image")
        show(page, tmp_path / name)
        message(page, text)
        assert "Traceback" not in page.content()
    page.locator("#image button[aria-label*=Remove], #image button[aria-label=Clear]").click()
    message(page, "Drop an image")
    show(page, tmp_path / "noise.png")
    page.get_by_text("exceed the maximum allowed size").wait_for()


def test_the_server_answers_only_this_machine_and_serves_only_the_page(server):
    address, folder = server
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match="refused"):
        # All of 127.0.0.0/8 is this machine; a server that listens everywhere would answer here.
        socket.create_connection(("127.0.0.2", port), timeout=10)
    for path in (PROJECT / "pyproject.toml", "/etc/hostname", f"{folder}/../secret"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=60)
        error.value.close()
        assert error.value.code in (403, 404)


def test_addresses_that_cannot_be_served(server):
    port = int(server[0].rstrip("/").rpartition(":")[2])
    with pytest.raises(
        ConfigError, match=rf"--host=127\.0\.0\.1 --port={port}: .* in use.*; choose another"
    ):
        app.serve(None, "127.0.0.1", port, Limits())
    with pytest.raises(ConfigError, match=r"--host=no\.such\.host\.invalid: .*; choose another"):
        app.serve(None, "no.such.host.invalid", None, Limits())
