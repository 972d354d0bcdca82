"""Exports a checkpoint as safetensors with its published names, or in transformers' layout.

    python tools/export_torch.py --checkpoint=runs/kitti --output=kitti.safetensors
    python tools/export_torch.py --checkpoint=CHECKPOINT --output=DIR --layout=transformers

Accepts any checkpoint that `diffdepth_jax.load` accepts, and writes, bit for bit, the weights used
for prediction (the averaged ones if a run has them). `diffdepth_jax.load` reads the result back;
config fields that the file does not store are printed. With --layout=transformers, for networks
that Hugging Face's transformers supports, the result is a new directory for `from_pretrained`:

    AutoModelForDepthEstimation.from_pretrained(DIR), AutoImageProcessor.from_pretrained(DIR)

Otherwise it is a file with the names of the authors' PyTorch code:

    state_dict = safetensors.torch.load_file("kitti.safetensors")
    model.load_state_dict(state_dict, strict=False)

`num_batches_tracked` is not written, as PyTorch fills it in itself; networks without it can be
loaded strictly. For DiffusionDepth, all names that share a module (MPViT's position encodings) are
written, and so is Swin's `relative_position_index`. The only keys that PyTorch then reports as
missing belong to parts that are created but never used: `convup_fp` of the ResNet and plain Swin
heads; `multi_att`, `self_attn`, `reference_points` and `level_embed` of HAHI. There are no
unexpected keys. The number of steps and `max_depth` are stored in the file's metadata, as are
statistics from tools/recalibrate.py. To use those, for example for 5 steps, in PyTorch:

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
    "Names and files of the authors or of transformers.",
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
        print(f"not stored in the file: {line}")


if __name__ == "__main__":
    cli.run(
        main,
        {
            "Flags": {
                **cli.CHECKPOINT,
                "output": "PATH",
                "layout": "NAME",
            }
        },
    )
