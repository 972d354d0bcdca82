r"""Predicts depth for images and videos with any checkpoint.

    python predict.py --checkpoint=runs/demo --input=IMAGE|DIR|GLOB --output=DIR
    python predict.py --checkpoint=ZoeD_M12_NK.pt --input=clip.mp4 --output=DIR
    python predict.py --checkpoint=ZoeD_M12_NK.pt --input=photo.jpg --output=DIR \
        --format=png,exr,ply --fov=70

First prints whether the network predicts metres or relative disparity. For an image, --format
selects

    png   STEM.png, 16 bits: metres x 256 as in KITTI, or relative disparity scaled to 0 to 65535
          as in MiDaS (larger is nearer); and STEM_colour.png
    npy   STEM.npy, float32: metres or relative disparity
    exr   STEM.exr, one float32 channel: Z in metres, or Y for relative disparity; needs OpenEXR
          (pip install 'diffdepth_jax[exr]')
    ply   STEM.ply, a coloured point cloud in metres: x to the right, y down, z forward; needs a
          network that predicts metres

For a video, the result is STEM_depth.mp4, with the same size and frame rate and one colour scale
for the whole video, taken from 16 of its frames; needs ffmpeg (pip install 'diffdepth_jax[video]').
With --format, the directory STEM_depth also gets these files for every frame, except the colour
pictures. The results of a video appear when it is finished. Relative disparity has a different
scale and shift in every frame.

With --num_samples=N, for networks that use noise, results are means of N samples, and
STEM_spread.npy, .png and .exr show their standard deviation: where the network is uncertain.

If a weights file does not determine the network, use --network and --field, for example to choose
between version 1 and 2 of Depth Anything.

An unreadable image is reported and skipped; the exit status is then 1. After an interruption, run
the same command with --skip_existing to resume.
"""

import sys
from typing import TYPE_CHECKING

from absl import flags

from diffdepth_jax import cli, ending
from diffdepth_jax.errors import ConfigError

if TYPE_CHECKING:
    from diffdepth_jax.inference.point_cloud import Camera

_COMMON = {
    "Images in, depth out": {
        "input": "PATH|DIR|GLOB",
        "output": "DIR",
        "format": "NAME,...",
        "skip_existing": "",
    },
    "Network": {
        **cli.CHECKPOINT,
        "num_inference_steps": "N",
        "num_samples": "N",
        "seed": "N",
        "flip_tta": "",
        "batch_size": "N",
    },
    "Camera of a point cloud": {"fov": "DEGREES", "intrinsics": "LIST|FILE"},
}


def run() -> None:
    """Parses the command line and predicts."""
    values = flags.FLAGS
    cli.define_checkpoint()
    flags.DEFINE_string(
        "input", None, "An image, a video, a directory of images, or a glob pattern."
    )
    output = cli.define_directory("output", "Where the results go.")
    flags.DEFINE_list(
        "format", None, "png, npy, exr, ply. Default: png,npy for images, none for videos."
    )
    flags.DEFINE_string("intrinsics", None, "fx,fy,cx,cy in pixels, or a KITTI calibration file.")
    flags.DEFINE_float("fov", None, "Horizontal field of view to assume; 60 by default.")
    flags.mark_flags_as_mutual_exclusive(["fov", "intrinsics"])
    flags.DEFINE_integer(
        "num_inference_steps", None, "Denoising steps; by default the checkpoint's."
    )
    flags.DEFINE_integer("seed", 0, "Seed of the initial noise.")
    flags.DEFINE_integer("num_samples", None, "Draw N samples; write their mean and spread.")
    flags.DEFINE_integer("batch_size", 1, "Images of equal size to predict at once.")
    flags.DEFINE_bool("skip_existing", False, "Skip images and videos whose results exist.")
    flags.DEFINE_bool(
        "flip_tta", None, "Average with the mirrored image's depth; by default as published."
    )
    flags.mark_flags_as_required(["checkpoint", "input", "output"])

    def main(_: list[str]) -> None:
        with ending.importing():
            from diffdepth_jax import inference
            from diffdepth_jax.inference import ffmpeg, files, progress, video
            from diffdepth_jax.inference.results import DEFAULT, WHAT, Results

        paths = files.find_images(values.input)
        are_videos = {path.suffix.lower() in ffmpeg.SUFFIXES for path in paths}
        if len(are_videos) > 1:
            raise ConfigError(
                f"{values.input} matches both images and videos: predict one kind at a time"
            )
        is_video = are_videos.pop()
        if is_video:
            ffmpeg.executable()  # checked first, as loading a model takes a while
        camera = _camera()
        model = inference.load(values.checkpoint, **cli.model_options())
        formats = values.format or ([] if is_video else DEFAULT)
        results = Results(model.output, tuple(formats), camera, pictures=not is_video)
        print(f"{values.checkpoint} predicts {WHAT[model.output]}", flush=True)
        if "ply" in formats:
            print(f"point clouds: {camera.described()}", flush=True)
        speed = progress.Speed("frame" if is_video else "image")
        failures = (video.predict_videos if is_video else files.predict_files)(
            model,
            paths,
            output.value,
            results,
            batch_size=values.batch_size,
            skip_existing=values.skip_existing,
            num_inference_steps=values.num_inference_steps,
            seed=values.seed,
            num_samples=values.num_samples,
            flip_tta=values.flip_tta,
            speed=speed,
        )
        if line := speed.describe():
            print(line)
        if failures:
            kind = "videos" if is_video else "images"
            sys.exit(f"error: {len(failures)} of {len(paths)} {kind} were skipped")

    cli.run(main, _COMMON)


def _camera() -> "Camera":
    """The camera given by --fov or --intrinsics."""
    from diffdepth_jax.inference.point_cloud import Camera, read_intrinsics

    values = flags.FLAGS
    if "ply" not in (values.format or ()):
        for name in ("fov", "intrinsics"):
            if values[name].value is not None:
                raise ConfigError(f"--{name} is for point clouds and needs --format=ply")
    if values.intrinsics is not None:
        return Camera(read_intrinsics(values.intrinsics))
    if values.fov is not None:
        return Camera(field_of_view=values.fov)
    return Camera()


if __name__ == "__main__":
    run()
