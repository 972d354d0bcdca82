"""A web page for trying checkpoints: drop an image, see its depth.

    python tools/app.py --checkpoint=runs/demo
    python tools/app.py --checkpoint=ZoeD_M12_NK.pt --runs=runs --port=8000

Needs the extra `app`: pip install 'diffdepth_jax[app]'. The page shows depth over the image, the
denoising steps of networks that denoise, the spread of several samples, and a point cloud that can
be rotated. Depth can be downloaded. With --runs=DIR the page also offers all runs and weights files
in a folder. --network and --field apply to all checkpoints.

Only this machine can reach the page, unless --host says otherwise: with --host=0.0.0.0 anyone who
can reach this machine can use it, and there is no password. Nothing is sent to other servers, nor
loaded from them. Uploads are limited by --max_megabytes and --max_megapixels, and images larger
than --shrink_megapixels are shrunk before depth is predicted, one image at a time. Files are
deleted after an hour, and when the program ends.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from absl import flags

from diffdepth_jax import cli, ending
from diffdepth_jax.errors import ConfigError, MissingPackageError

FLAGS = flags.FLAGS
cli.define_checkpoint(several=True)
flags.DEFINE_string("runs", None, "A folder of runs and weights files.")
flags.DEFINE_string("host", "127.0.0.1", "The address to listen on.")
flags.DEFINE_integer("port", None, "By default the first free one from 7860.", 1, 65535)
flags.DEFINE_float("max_megabytes", 20.0, "Largest file to accept.")
flags.DEFINE_float("max_megapixels", 50.0, "Largest image to accept.")
flags.DEFINE_float("shrink_megapixels", 1.0, "Larger images are shrunk to this first.")
flags.DEFINE_integer("keep", 2, "Models to keep in memory.")
_CLEANING = 60  # seconds from one deletion of old files to the next


def main(_: list[str]) -> None:
    paths = [Path(path).expanduser() for path in FLAGS.checkpoint]
    if not paths and FLAGS.runs is None:
        raise ConfigError("nothing to try: give --checkpoint=PATH or --runs=DIR")
    with tempfile.TemporaryDirectory(prefix="diffdepth_app_") as folder:
        # Read when Gradio is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "copies")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        signal.signal(signal.SIGTERM, _end)
        with ending.importing():
            try:
                import gradio  # noqa: F401
            except ImportError as error:
                raise MissingPackageError(
                    "the page needs the package Gradio: pip install 'diffdepth_jax[app]'"
                ) from error
            from diffdepth_jax import inference
            from diffdepth_jax.app import checkpoints, page, results, uploads
            from diffdepth_jax.app.actions import Actions

        limits = uploads.Limits(FLAGS.max_megabytes, FLAGS.max_megapixels, FLAGS.shrink_megapixels)
        if FLAGS.runs is not None:
            paths += checkpoints.find(Path(FLAGS.runs).expanduser())
        options = cli.model_options()
        models = checkpoints.Checkpoints(
            paths, lambda path: inference.load(path, **options), keep=FLAGS.keep
        )
        models.model(models.names[0])  # A mistake shows before the page does.
        served = page.build(Actions(models, limits, Path(folder)), _examples())
        address = page.serve(served, FLAGS.host, FLAGS.port, limits)
        try:
            print(f"open {address} in a browser; Ctrl-C ends the program", flush=True)
            while True:
                time.sleep(_CLEANING)
                results.remove_old(Path(folder), time.time())
        finally:
            served.close(verbose=False)


def _examples() -> list[Path]:
    """Four validation images of the sample data set in the repository, if it is there."""
    sample = Path(__file__).resolve().parents[1] / "sample"
    drives = sorted(path.name for path in sample.glob("depth/val/*"))
    chosen = drives[len(drives) // 8 :: max(len(drives) // 4, 1)][:4]
    return [path for drive in chosen for path in sample.glob(f"raw/*/{drive}/image_02/data/*.jpg")]


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    cli.run(
        main,
        {
            "What to try": {
                "checkpoint": "PATH",
                "runs": "DIR",
                "network": "NAME",
                "field": "NAME=VALUE",
                "keep": "N",
            },
            "Who may use it": {"host": "ADDRESS", "port": "N"},
            "What may be uploaded": {
                "max_megabytes": "NUMBER",
                "max_megapixels": "NUMBER",
                "shrink_megapixels": "NUMBER",
            },
        },
    )
