"""Exports a checkpoint as one file that runs without this package: StableHLO or ONNX.

    python tools/export.py --checkpoint=runs/kitti --size=352x1216 --output=kitti.stablehlo
    python tools/export.py --checkpoint=runs/kitti --size=352x1216 --output=kitti.onnx

Accepts any checkpoint that `diffdepth_jax.load` accepts. The file contains the weights,
normalisation, the sampler with its noise and the clipping to `max_depth`. It takes uint8 RGB images
[b, h, w, 3] of the given --size and returns the same as `predict` (without the mirrored image):
float32 [b, h, w], metres or relative disparity. Resizing images to the network's input size, and
results back, is up to you. Any number of images can be passed per call unless --batch_size fixes
it; every image starts from the same noise.

StableHLO is written with `jax.export`, for CPU and CUDA in one file, even without a GPU; it also
needs `pip install flatbuffers`. Running it only needs JAX:

    exported = jax.export.deserialize(bytearray(open("kitti.stablehlo", "rb").read()))
    depth = exported.call(images)

and `exported.mlir_module()` is the text form for other compilers. JAX guarantees to read such files
for six months after the release that wrote them.

ONNX is written with jax2onnx (requirements-onnx.txt). ONNX Runtime can run it, and TensorRT can
read it:

    session = onnxruntime.InferenceSession("kitti.onnx")
    (depth,) = session.run(None, {"image": images})
"""

from absl import flags

from diffdepth_jax import atomic, cli
from diffdepth_jax.errors import ConfigError

FLAGS = flags.FLAGS
cli.define_checkpoint()
flags.DEFINE_string("output", None, "The .stablehlo or .onnx file to write.")
cli.define_size("size", "Size of the network's input images.")
flags.DEFINE_integer("batch_size", None, "Images per call; by default any number.")
flags.DEFINE_integer("num_inference_steps", None, "Denoising steps; by default the checkpoint's.")
flags.DEFINE_integer("seed", 0, "Seed of the noise.")
flags.DEFINE_list("platforms", ["cpu", "cuda"], "Platforms for StableHLO: cpu, cuda, rocm, tpu.")
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
                **cli.CHECKPOINT,
                "size": "HEIGHTxWIDTH",
                "output": "FILE",
                "batch_size": "N",
                "num_inference_steps": "N",
                "seed": "N",
                "platforms": "NAME,...",
            }
        },
    )
