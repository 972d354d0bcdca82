"""A checkpoint as safetensors under the names of DiffusionDepth's PyTorch code.

    python tools/export_torch.py --checkpoint=runs/kitti --output=kitti.safetensors

Takes whatever `diffdepth_jax.load` takes and writes, bit for bit, the weights it predicts with (the
averaged ones where a run keeps them). `diffdepth_jax.load` reads the file back; in PyTorch:

    state_dict = safetensors.torch.load_file("kitti.safetensors")
    model.load_state_dict(state_dict, strict=False)

Every name that shares a module (MPViT's position encodings) is written, and so is Swin's
`relative_position_index`. `num_batches_tracked` is not, which PyTorch fills in itself. What PyTorch
then reports as missing are the parts that DiffusionDepth builds and never calls: `convup_fp` of the
ResNet and plain Swin heads; `multi_att`, `self_attn`, `reference_points` and `level_embed` of HAHI.
Nothing is unexpected. The number of steps and `max_depth` are kept in the file's metadata, and so
are the statistics that tools/recalibrate.py found; fields of the config that names, shapes and
metadata do not tell are printed. To use such statistics in PyTorch, say of 5 steps:

    metadata = safetensors.safe_open("kitti.safetensors", framework="pt").metadata()
    found = json.loads(metadata["recalibrated"])["5"]
    state_dict |= {name: torch.tensor(values) for name, values in found.items()}
"""

from absl import flags

from diffdepth_jax import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run directory, an official .pt, or a .safetensors.")
flags.DEFINE_string("output", None, "The .safetensors file to write.")
flags.mark_flags_as_required(["checkpoint", "output"])


def main(_: list[str]) -> None:
    from diffdepth_jax import inference
    from diffdepth_jax.inference.export import check_target

    check_target(cli.output_file("--output", FLAGS.output), FLAGS.checkpoint)
    for line in inference.export(inference.load(FLAGS.checkpoint), FLAGS.output):
        print(f"not told by the file: {line}")


if __name__ == "__main__":
    cli.run(main)
