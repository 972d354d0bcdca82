"""A model as one file, run in a process without this package."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import diffdepth_jax
from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import portable
from tests.inference.small_model import image

PROJECT = Path(__file__).resolve().parents[2]
SIZE = (32, 48)
IMAGES = np.stack([image(*SIZE, seed=seed) for seed in range(2)])

# Run in a folder from which this package cannot be imported.
RUN = {
    "stablehlo": """
import sys, jax, numpy
exported = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
assert exported.platforms == ("cpu", "cuda")
predict = exported.call
""",
    "onnx": """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
predict = lambda images: session.run(None, {"image": images})[0]
assert "jax" not in sys.modules
""",
}
END = """
assert not any(name.startswith(("diffdepth_jax", "flax")) for name in sys.modules)
images = numpy.load("images.npy")
numpy.save("depth.npy", [*numpy.asarray(predict(images)), *numpy.asarray(predict(images[:1]))])
"""


def export(checkpoint, output, *options):
    command = [sys.executable, "tools/export.py", f"--checkpoint={checkpoint}"]
    return subprocess.run(
        [*command, f"--output={output}", f"--size={SIZE[0]}x{SIZE[1]}", *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", RUN)
def test_the_file_predicts_without_the_package(kind, run, tmp_path):
    if kind == "onnx":
        pytest.importorskip("jax2onnx", reason="ONNX needs requirements-onnx.txt")
    done = export(run, tmp_path / f"model.{kind}", "--num_inference_steps=2", "--seed=3")
    assert done.returncode == 0, done.stderr
    assert "uint8 RGB [b, 32, 48, 3] -> float32 [b, 32, 48], metres" in done.stdout
    np.save(tmp_path / "images.npy", IMAGES)
    code = RUN[kind] + END
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path)
    with pytest.warns(UserWarning, match="not for 2"):
        wanted = diffdepth_jax.load(run).predict(IMAGES, seed=3, num_inference_steps=2)
    assert wanted.std() > 1e-3
    *depth, alone = np.load(tmp_path / "depth.npy")  # from a batch of two and a batch of one
    np.testing.assert_allclose(alone, wanted[0], rtol=1e-5, atol=1e-5 * wanted.max())
    np.testing.assert_allclose(depth, wanted, rtol=1e-5, atol=1e-5 * wanted.max())


def test_the_noise_of_the_steps_comes_from_the_seed(run):
    model = diffdepth_jax.load(run)
    diffusion = dataclasses.replace(model.config.diffusion, eta=1.0)
    model = diffdepth_jax.load(run, diffusion=diffusion)
    exported = portable.stablehlo(model, portable.Options(SIZE, batch_size=2, seed=1), ["cpu"])
    got = exported.call(IMAGES)
    np.testing.assert_allclose(got, model.predict(IMAGES, seed=1), rtol=1e-4, atol=1e-4)
    assert np.abs(got - model.predict(IMAGES, seed=2)).max() > 1e-2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": (0, 48)}, r"size is \(0, 48\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_inference_steps": 2000}, "not 2000"),
    ],
)
def test_impossible_options_are_refused(changes, message, run):
    with pytest.raises(ConfigError, match=message):
        portable.stablehlo(diffdepth_jax.load(run), portable.Options(**{"size": SIZE, **changes}))


def test_an_unknown_platform_is_refused(run):
    with pytest.raises(ConfigError, match="platforms are cpu, gpu; they must be among cpu, cuda"):
        portable.stablehlo(diffdepth_jax.load(run), portable.Options(SIZE), ["cpu", "gpu"])


def test_another_file_ending_is_refused(run, tmp_path):
    done = export(run, tmp_path / "model.pb")
    assert done.returncode == 2 and "must end in .stablehlo or .onnx" in done.stderr
    assert not list(tmp_path.iterdir())


def test_if_a_package_for_writing_is_missing_the_error_says_what_to_install(run, monkeypatch):
    model, options = diffdepth_jax.load(run), portable.Options(SIZE, batch_size=1)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ConfigError, match="see requirements-onnx"):
        portable.onnx(model, options)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    with pytest.raises(ConfigError, match="pip install flatbuffers"):
        portable.serialized(portable.stablehlo(model, options, ["cpu"]))


def test_a_conversion_with_other_results_is_refused(run, monkeypatch):
    """With stand-ins for both packages: the graph returns the network's result times `factor`."""
    model, options = diffdepth_jax.load(run), portable.Options(SIZE, batch_size=1)
    factor = 1.0

    def to_onnx(program, inputs, **names):
        assert names["input_names"] == ["image"] and names["output_names"] == ["depth"]
        return types.SimpleNamespace(SerializeToString=lambda: program)

    def session(program, providers):
        return types.SimpleNamespace(
            run=lambda _, feed: [factor * np.asarray(jax.jit(program)(feed["image"]))]
        )

    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=to_onnx))
    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=session))
    assert callable(portable.onnx(model, options))
    factor = 1.01
    with pytest.raises(ConfigError, match=r"correctly: .* off by 0.01"):
        portable.onnx(model, options)
