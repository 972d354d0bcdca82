"""Whole runs with the real worker and diffusers' pipelines, on tiny models with random weights."""

import sys

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax.adverse import config, manifest, runner

for package in ("torch", "diffusers", "accelerate"):
    pytest.importorskip(package)

from tests.adverse import tiny_models  # noqa: E402 (it needs torch)

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PROMPTS = "".join(
    f"[conditions.{name}]\ntemplates = ['{name} {{one}} {{two}}']\nnegative = 'dull'\n"
    f"[conditions.{name}.words]\none = ['a', 'b', 'c', 'd']\ntwo = ['e', 'f', 'g', 'h']\n"
    for name in ("night", "fog", "scene", "glass", "mirror")
)


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """The mapping of a backend with a tiny Stable Diffusion and its adapter."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.write_base(folder / "sd", "sd")
    tiny_models.write_adapter(folder / "adapter", "sd")
    return {
        "name": "diffusers",
        "base": str(folder / "sd"),
        "control": str(folder / "adapter"),
        "num_inference_steps": 2,
        "area": 64 * 64,
        "batch_size": 2,
        "threads": 1,
    }


@pytest.fixture
def prompts(tmp_path):
    """Short prompts: the tiny tokenizer's tokens are single characters."""
    (tmp_path / "short.toml").write_text("negative = ''\n" + PROMPTS)
    return {"files": (str(tmp_path / "short.toml"),)}


def run(mapping, workdir):
    settings = config.from_mapping(mapping)
    return runner.run(settings, workdir, python=sys.executable, progress=False).records


def test_conditions_of_clean_images(mapping, diffusion, prompts, checkpoint, tmp_path):
    teacher = {"checkpoint": checkpoint(), "batch_size": 2}
    settings = mapping(backend=diffusion, prompts=prompts, teacher=teacher, labels="teacher")
    records = run(settings, tmp_path / "out")
    assert [record.status for record in records] == ["ok"] * 10
    images = [np.asarray(Image.open(tmp_path / "out" / record.image)) for record in records]
    for record, image in zip(records, images, strict=True):
        clean = np.asarray(Image.open(tmp_path / "out" / record.clean))
        assert image.shape == clean.shape
        assert record.backend == "diffusers-t2i_adapter" and record.structure is not None
    assert len({image.tobytes() for image in images}) == 10  # prompts and seeds matter
    assert manifest.read(tmp_path / "out") == list(records)

    # A lost image is made again within its batch, unchanged.
    path = tmp_path / "out" / records[3].image
    before = path.read_bytes()
    path.unlink()
    assert run(settings, tmp_path / "out") == records
    assert path.read_bytes() == before


def test_materials_of_generated_scenes(mapping, diffusion, prompts, checkpoint, tmp_path):
    settings = mapping(
        backend=diffusion,
        prompts=prompts,
        source=None,
        scenes={"count": 2, "size": (48, 64)},
        conditions=("glass", "mirror"),
        teacher={"checkpoint": checkpoint(), "batch_size": 2},
        labels="teacher",
    )
    records = run(settings, tmp_path / "out")
    assert [record.status for record in records] == ["ok"] * 4
    for record in records:
        clean, image = (
            np.asarray(Image.open(tmp_path / "out" / file)) for file in (record.clean, record.image)
        )
        assert clean.shape == image.shape == (48, 64, 3)
        label = np.load(tmp_path / "out" / record.label)
        np.testing.assert_array_equal(label, 200 / (1 + clean.mean(-1, dtype=np.float32)))
        assert np.abs(clean.astype(int) - image).mean() > 2
