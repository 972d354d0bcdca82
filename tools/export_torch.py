"""A checkpoint as safetensors under its publication's names, or as transformers stores it.

    python tools/export_torch.py --checkpoint=runs/kitti --output=kitti.safetensors
    python tools/export_torch.py --checkpoint=CHECKPOINT --output=DIR --layout=transformers

Takes whatever `diffdepth_jax.load` takes and writes, bit for bit, the weights it predicts with (the
averaged ones where a run keeps them). `diffdepth_jax.load` reads the result back; fields of the
config that it does not tell are printed. With --layout=transformers, for the networks that Hugging
Face's transformers has, the result is a new directory that `from_pretrained` takes:

    AutoModelForDepthEstimation.from_pretrained(DIR), AutoImageProcessor.from_pretrained(DIR)

Otherwise it is a file under the names of the authors' PyTorch code:

    state_dict = safetensors.torch.load_file("kitti.safetensors")
    model.load_state_dict(state_dict, strict=False)

`num_batches_tracked` is not written, which PyTorch fills in itself; networks without it can be
loaded strictly. Of DiffusionDepth, every name that shares a module (MPViT's position encodings) is
written, and so is Swin's `relative_position_index`. What PyTorch then reports as missing are the
parts that it builds and never calls: `convup_fp` of the ResNet and plain Swin heads; `multi_att`,
`self_attn`, `reference_points` and `level_embed` of HAHI. Nothing is unexpected. The number of
steps and `max_depth` are kept in the file's metadata, and so are the statistics that
tools/recalibrate.py found. To use those in PyTorch, say of 5 steps:

    metadata = safetensors.safe_open("kitti.safetensors", framework="pt").metadata()
    found = json.loads(metadata["recalibrated"])["5"]
    state_dict |= {name: torch.tensor(values) for name, values in found.items()}
"""

from absl import flags

from diffdepth_jax import cli

FLAGS = flags.FLAGS
cli.define_checkpoint()
flags.DEFINE_string("output", None, "The .safetensors file or the directory to write.")
flags.DEFINE_enum(
    "layout",
    "authors",
    ["authors", "transformers"],
    "Names and files as the authors' or as transformers'.",
)
flags.mark_flags_as_required(["checkpoint", "output"])


def main(_: list[str]) -> None:
    from diffdepth_jax import inference
    from diffdepth_jax.inference.export import check_target

    is_file = FLAGS.layout == "authors"
    output = (cli.output_file if is_file else cli.directory)("--output", FLAGS.output)
    check_target(output, FLAGS.checkpoint, FLAGS.layout)
    model = inference.load(FLAGS.checkpoint, **cli.model_options())
    for line in inference.export(model, output, FLAGS.layout):
        print(f"not told by the file: {line}")


if __name__ == "__main__":
    cli.run(
        main,
        {
            "Flags": {
                "checkpoint": "PATH",
                "network": "NAME",
                "field": "NAME=VALUE",
                "output": "PATH",
                "layout": "NAME",
            }
        },
    )
