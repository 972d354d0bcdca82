"""A checkpoint as one file that runs without this package: StableHLO, or ONNX.

    python tools/export.py --checkpoint=runs/kitti --size=352x1216 --output=kitti.stablehlo
    python tools/export.py --checkpoint=runs/kitti --size=352x1216 --output=kitti.onnx

Takes whatever `diffdepth_jax.load` takes. Weights, normalisation, the sampler with its noise and
the clipping to `max_depth` are in the file. It takes images as uint8 RGB [b, h, w, 3] of the size
that is given here, and returns what `predict` returns for them (without the mirrored image):
float32 [b, h, w], metres or relative disparity. What the network resizes its images to is asked
for: that and the way back are yours. The number of images in a call is free unless --batch_size
fixes it; every image starts from the same noise.

StableHLO is written by `jax.export`, for the CPU and CUDA in one file, whether or not this machine
has a GPU; `pip install flatbuffers` is what it needs besides. JAX alone runs it:

    exported = jax.export.deserialize(bytearray(open("kitti.stablehlo", "rb").read()))
    depth = exported.call(images)

and `exported.mlir_module()` is its text for other compilers. JAX promises to read such a file for
six months after the release that wrote it.

ONNX is written by jax2onnx (requirements-onnx.txt). ONNX Runtime runs it, and TensorRT reads it:

    session = onnxruntime.InferenceSession("kitti.onnx")
    (depth,) = session.run(None, {"image": images})
"""

from absl import flags

from diffdepth_jax import atomic, cli
from diffdepth_jax.errors import ConfigError

FLAGS = flags.FLAGS
cli.define_checkpoint()
flags.DEFINE_string("output", None, "The .stablehlo or .onnx file to write.")
cli.define_size("size", "Of the images as the network is fed them.")
flags.DEFINE_integer("batch_size", None, "Images in a call; by default any number.")
flags.DEFINE_integer("num_inference_steps", None, "Denoising steps; by default the checkpoint's.")
flags.DEFINE_integer("seed", 0, "Of the noise.")
flags.DEFINE_list("platforms", ["cpu", "cuda"], "What StableHLO is for: cpu, cuda, rocm, tpu.")
flags.mark_flags_as_required(["checkpoint", "output", "size"])


def main(_: list[str]) -> None:
    output = cli.output_file("--output", FLAGS.output)
    if output.suffix not in (".stablehlo", ".onnx"):
        raise ConfigError(f"--output={output} must end in .stablehlo or .onnx")

    from diffdepth_jax import inference
    from diffdepth_jax.inference import portable

    height, width = cli.size(FLAGS.size)
    options = portable.Options(
        (height, width), FLAGS.batch_size, FLAGS.num_inference_steps, FLAGS.seed
    )
    model = inference.load(FLAGS.checkpoint, **cli.model_options())
    if output.suffix == ".onnx":
        content = portable.onnx(model, options)
    else:
        content = portable.serialized(portable.stablehlo(model, options, FLAGS.platforms))
    atomic.write(output, lambda file: file.write(content))
    batch = FLAGS.batch_size or "b"
    unit = "metres" if model.output == "metric_depth" else "relative disparity"
    print(
        f"{output}: image uint8 RGB [{batch}, {height}, {width}, 3] -> "
        f"float32 [{batch}, {height}, {width}], {unit}; {len(content) / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    cli.run(
        main,
        {
            "Flags": {
                "checkpoint": "PATH",
                "network": "NAME",
                "field": "NAME=VALUE",
                "size": "HEIGHTxWIDTH",
                "output": "FILE",
                "batch_size": "N",
                "num_inference_steps": "N",
                "seed": "N",
                "platforms": "NAME,...",
            }
        },
    )
