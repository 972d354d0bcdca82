import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.adverse import config, gallery, runner

EVIL = "</script><script>document.title = 'owned'</script><b>\"&'"


@pytest.fixture
def written(mapping, checkpoint, tmp_path):
    """A page of five frames with a prompt that tries to be HTML; and its records."""
    settings = mapping(teacher={"checkpoint": checkpoint(), "batch_size": 2})
    settings["backend"] = {"name": "stand_in", "fails": "f1/night", "black": "f2/fog"}
    result = runner.run(config.from_mapping(settings), tmp_path / "out", progress=False)
    details = {"strengths": {"amount": 0.12345, "kind": "a"}, "number": 3}
    changed = dataclasses.replace(result.records[0], prompt=EVIL, details=details)
    records = [changed, *result.records[1:]]
    gallery.write(tmp_path / "out", records, config.GalleryConfig(frames=5, width=40))
    return tmp_path / "out", records


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


def test_the_page_is_complete_and_self_contained(written):
    workdir, records = written
    page = (workdir / "gallery.html").read_text()
    assert EVIL not in page and "owned'</script>" not in page
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//', page)
    data = data_of(page)
    assert [(image["id"], image["condition"]) for image in data["images"]] == [
        (record.id, record.condition) for record in records
    ]
    assert data["images"][0]["prompt"] == EVIL
    assert data["images"][0]["details"] == "amount 0.123, kind a, number 3"
    assert {image["status"] for image in data["images"]} == {"ok", "failed", "rejected"}
    assert set(data["frames"]) == {f"f{n}" for n in range(5)}
    sources = [image["image"] for image in data["images"]]
    assert [source is None for source in sources].count(True) == 1  # the failed one
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources if source)


def test_frames_are_limited_and_spread(written):
    workdir, records = written
    gallery.write(workdir, records, config.GalleryConfig(frames=2, width=40))
    page = (workdir / "gallery.html").read_text()
    assert set(data_of(page)["frames"]) == {"f0", "f2"} and "2 of 5 frames" in page


def test_the_sheet_has_a_row_for_each_frame(written):
    workdir, _ = written
    sheet = Image.open(workdir / "contact_sheet.png")
    assert sheet.width == 4 * (40 + 4) + 4  # clean, depth and two conditions
    assert sheet.height == 4 * (24 + 16 + 4) + (16 + 16 + 4) + 4  # one frame is shorter
    clean = np.asarray(sheet)[4 + 16 : 4 + 16 + 24, 4:44]
    np.testing.assert_array_equal(clean, np.asarray(Image.open(workdir / "clean/f0.png")))


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium is installed")


def dom(page, tmp_path, script=""):
    """The page's DOM in a browser after running `script`."""
    text = page.read_text().replace("</body>", f"<script>{script}</script></body>")
    (tmp_path / "page.html").write_text(text)
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout


@pytest.mark.slow
def test_a_browser_shows_sorts_and_filters(written, tmp_path):
    workdir, records = written
    page = workdir / "gallery.html"
    shown = dom(page, tmp_path)
    titles = re.findall(r"<h2>(.*?)</h2>", shown)
    assert titles == [f"{r.id}, {r.condition} {r.variant}" for r in records]
    assert "<title>Generated conditions</title>" in shown  # no script from the prompt ran
    assert "10 of 10 images" in shown

    def choose(**fields):
        script = "".join(f'field("{k}").value = "{v}"; ' for k, v in fields.items()) + "show();"
        return re.findall(r"<h2>(.*?), (.*?) 0</h2>", dom(page, tmp_path, script))

    scored = [record for record in records if record.structure]
    worst = sorted(scored, key=lambda record: -record.structure["abs_rel"])
    got = choose(order="worst")
    assert got[: len(worst)] == [(record.id, record.condition) for record in worst]
    assert len(got) == 10  # those without a score come last
    assert choose(condition="fog", status="rejected") == [("f2", "fog")]
    assert choose(text="F3") == [("f3", "night"), ("f3", "fog")]
