"""A path that the system refuses is a user error: one line, wherever it is given."""

import pytest

import diffdepth_jax
from diffdepth_jax import cli
from diffdepth_jax.errors import FileError
from diffdepth_jax.evaluation import protocols
from diffdepth_jax.evaluation.report import comparisons
from diffdepth_jax.evaluation.run import checkpoint, dataset
from diffdepth_jax.evaluation.run import files as depth_files
from diffdepth_jax.inference import files
from diffdepth_jax.inference.export import check_target
from diffdepth_jax.training import workdir

USES = {
    "load": diffdepth_jax.load,
    "images": files.find_images,
    "depth maps": depth_files.find,
    "run directory": checkpoint.run_directory,
    "training": lambda path: workdir.held(path).__enter__(),
    "results": lambda path: dataset.score_dataset(None, [], [], path),
    "comparison": lambda path: comparisons.read({"a": path}, protocols.get("release"), {}),
    "output": lambda path: cli.output_file("--output", str(path)),
    "export": lambda path: check_target(f"{path}.safetensors", path.parent),
}


@pytest.mark.parametrize("use", USES)
def test_a_name_that_is_too_long_is_reported_with_the_cause(tmp_path, use):
    path = tmp_path / ("x" * 300)
    with pytest.raises(FileError, match=r"x{300}.*File name too long"):
        USES[use](path)
