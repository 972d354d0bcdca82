import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.evaluation import boundary, protocols
from diffdepth_jax.evaluation.report import figures, page, papers, tables
from diffdepth_jax.evaluation.run.dataset import score_dataset

PROTOCOLS = (
    protocols.get("nuscenes", alignment="lsq_disparity", resize_input="none"),
    protocols.get("release"),
)


def samples(count=9):
    generator = np.random.default_rng(0)
    for index in range(count):
        depth = generator.uniform(1, 70, (90, 160)).astype(np.float32)
        depth[generator.random(depth.shape) < 0.9] = 0
        yield {
            "id": f"frame <{index}>",
            "image": np.full((90, 160, 3), 10 * index, np.uint8),
            "depth": depth,
            "condition": "night" if index % 2 else "day-clear",
        }


def predict(images):
    """The brighter the image, the larger the error."""
    ramp = np.linspace(1, 0.1, 160)[None, :].repeat(90, axis=0)
    return [ramp + float(image[0, 0, 0]) for image in images]


class Tags(HTMLParser):
    """Collects the tags of a page and checks that each is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def written(tmp_path, monkeypatch):
    comparable = tuple(
        dataclasses.replace(each, num_images=9, options={**each.options, "resize_input": "none"})
        for each in papers.NUSCENES
    )
    monkeypatch.setitem(papers.REPORTED, "nuscenes", comparable)
    found = score_dataset(
        predict,
        list(samples()),
        PROTOCOLS,
        tmp_path,
        options={"dataset": "nuscenes"},
        progress=False,
    )
    page.save(tmp_path, PROTOCOLS, predict, list(samples()))
    return (tmp_path / "report.html").read_text(), found


def test_the_page_is_complete_and_self_contained(written):
    text, _ = written
    tags, kinds = Tags(), []
    tags.feed(text)
    assert tags.open == []
    for tag, attributes in tags.found:
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            kind, _, content = attributes["src"].partition(",")
            kinds.append(kind)
            content = base64.b64decode(content)
            if kind == "data:image/svg+xml;base64":
                ElementTree.fromstring(content)
            else:
                with Image.open(io.BytesIO(content)) as picture:
                    assert picture.width <= 420
    assert "http" not in text and len(text) < 1e6
    assert kinds.count("data:image/jpeg;base64") == 6 * 4
    assert kinds.count("data:image/svg+xml;base64") == len(kinds) - 6 * 4 == 2 * 3


def test_the_page_shows_the_numbers_and_incomparable_ones_in_grey(written):
    text, found = written
    for result in found.values():
        assert f"{result['metrics']['abs_rel']:.4f}" in text
    rows = re.findall(r"<tr(.*?)><th>(.*?)</th>(.*?)</tr>", text)
    reported = {name: cells for kind, name, cells in rows if "reported" in kind}
    assert re.findall(r"<td>([\d.]+)</td>", reported["DPT before"]) == ["0.1890", "0.3540"]
    assert "evaluated with dataset=kitti, depth=groundtruth, an unknown number of images: D" in text
    assert "frame &lt;" in text and "frame <" not in text


@pytest.fixture
def measured(tmp_path):
    """A result with depth edges and a spread, and its page, which compares it with one without."""

    def drawn(images):
        generator = np.random.default_rng(0)
        spread = generator.random((90, 160))
        return [(np.maximum(depth + spread * 5, 1.0), spread) for depth in map(scene, images)]

    def scene(image):
        depth = np.full((90, 160), 40.0)
        depth[30:60, 20 + image[0, 0, 0] : 70] = 10.0
        return depth

    frames = [each | {"depth": scene(each["image"])} for each in samples(3)]
    protocol = protocols.get("dense")
    plain = tmp_path / "plain"
    score_dataset(lambda images: [scene(image) for image in images], frames, (protocol,), plain)
    edges = protocols.get("dense", boundary=True)
    (found,) = score_dataset(
        drawn,
        frames,
        (edges,),
        tmp_path,
        options={"num_samples": 5},
        compare={"plain": plain},
        baseline_depth=np.full((90, 160), 20.0, np.float32),
    ).values()
    page.save(tmp_path, (edges,), drawn, frames)
    return (tmp_path / "report.html").read_text(), found


def test_edges_and_the_spread_are_shown(measured):
    text, found = measured
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert text.count('alt="sparsification curve"') == 1 and "spread of 5 samples" in text
    assert len(re.findall(r'alt="relative spread, white 0, purple [\d.]+"', text)) == 3
    cells = dict(re.findall(r"<tr><th>([\d.]+|average)</th>(.*?)</tr>", text))
    assert list(cells) == ["1.05", "1.10", "1.15", "1.20", "1.25", "average"]
    values = found["metrics"]
    for label, ending in (("1.15", "_1.15"), ("average", "")):
        shown = re.findall(r"<td>([\d.]*)</td>", cells[label])
        ours = [
            f"{values[f'boundary_{kind}{ending}']:.4f}" for kind in ("f1", "precision", "recall")
        ]
        assert shown == [*ours, "0.0000", "0.0000", "0.0000"]  # the flat map has no edge
    order = dict(re.findall(r"<tr><th>(by the spread|by depth.*?|at random)</th>(.*?)</tr>", text))
    assert f"{values['ause_rel']:.4f}" in order["by the spread"]
    assert f"{values['rank_correlation_relative']:.4f}" in order["by the spread"]
    assert f"{values['ause_rel_depth']:.4f}" in order["by depth (control)"]
    # The general table does not repeat them ratio by ratio.
    assert "boundary_f1<" in text and "boundary_f1_1.05" not in text
    lines = tables.table(found).splitlines()
    (row,) = [line.split() for line in lines if line.startswith("1.15")]
    assert row[1:4] == [f"{values[f'boundary_{kind}_1.15']:.4f}" for kind in boundary.KINDS]
    assert not any(line.startswith("boundary_f1_") for line in lines)


def test_a_page_without_them_does_not_mention_them(written):
    text, _ = written
    assert not re.search("Depth edges|spread|sparsification|boundary", text)


def test_the_figure_depends_on_each_curve():
    curves = {"removed": [0, 0.5], "spread": [1, 0.5], "oracle": [1, 0.1], "depth": [1, 0.9]}
    assert figures.sparsification(curves) == figures.sparsification(curves)
    for name in ("spread", "oracle", "depth"):
        assert figures.sparsification(curves) != figures.sparsification(curves | {name: [1, 0.7]})


def test_the_same_values_give_the_same_figure():
    values = [0.1, 0.2, 0.2, 0.4]
    assert figures.histogram(values) == figures.histogram(values)
    assert figures.histogram(values) != figures.histogram([*values, 0.5])
    assert figures.histogram([0.3])  # a single value


def test_best_and_worst_images_by_the_first_protocol(written):
    text, _ = written
    names = re.findall(r'class="example"><p>frame &lt;(\d)&gt;', text)
    assert len(names) == len(set(names)) == 6
    values = [float(value) for value in re.findall(r'class="small">abs_rel ([\d.]+)', text)]
    assert values[:3] == sorted(values[:3]) and values[3:] == sorted(values[3:], reverse=True)
    assert max(values[:3]) <= min(values[3:])


def test_few_images_are_shown_once_and_a_stream_has_no_pictures(tmp_path):
    few = list(samples(2))
    score_dataset(predict, few, PROTOCOLS[1:], tmp_path, progress=False)
    page.save(tmp_path, PROTOCOLS[1:], predict, few)
    assert (tmp_path / "report.html").read_text().count('class="example"') == 2
    page.save(tmp_path, PROTOCOLS[1:], predict, iter(few))
    assert "image/jpeg" not in (tmp_path / "report.html").read_text()


def test_sparse_depth_stays_visible_when_shrunk():
    depth, mask = np.zeros((10, 1000)), np.zeros((10, 1000), bool)
    depth[4, 501:504], mask[4, 501:503] = 7, True
    small = figures.smaller(depth, mask)
    assert small.shape == (3, 333)
    assert np.nanmin(small) == np.nanmax(small) == 7 and np.isfinite(small).sum() == 1
