"""Time and memory of one image's depth with other networks, against their PyTorch classes.

    python benchmarks/networks.py [--cases="dpt_large 448x448"]

PyTorch runs transformers' model classes in eager mode, with fused or plain attention (MiDaS v2.1,
which transformers lacks, is in `torch_peer`). Their random weights are saved in transformers'
layout, and ours are loaded from those files. Appends to results/benchmarks.csv.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import numpy as np
import peer
from harness import Question, Way

# Input sizes for 480x640 images. transformers' DPT on ViT takes only squares: about as many pixels
# as 384x512.
CASES = (
    "depth_anything_vits 518x686",
    "depth_anything_vitb 518x686",
    "dpt_large 448x448",
    "midas_v21 288x384",
)


def image_of(case: str) -> np.ndarray:
    """A normalised image [1, h, w, 3]."""
    shape = (1, *peer.case(case)[1:], 3)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def weights(network: str, folder: Path) -> Path:
    """A file, or a directory in transformers' layout."""
    return folder / ("midas_v21_384.pt" if network == "midas_v21" else network)


def torch_model(network: str, attention: str) -> Any:
    import torch

    torch.manual_seed(0)
    if network == "midas_v21":
        from torch_peer import midas_v21

        return midas_v21.build()
    import transformers

    if network == "dpt_large":
        config = transformers.DPTConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            backbone_out_indices=[5, 11, 17, 23],
            neck_hidden_sizes=[256, 512, 1024, 1024],
            qkv_bias=True,
            attn_implementation=attention,
        )
        return transformers.DPTForDepthEstimation(config)
    width, heads, features = {"s": (384, 6, 64), "b": (768, 12, 128)}[network[-1]]
    backbone = transformers.Dinov2Config(
        hidden_size=width,
        num_attention_heads=heads,
        image_size=518,
        patch_size=14,
        out_indices=[3, 6, 9, 12],
        apply_layernorm=True,
        reshape_hidden_states=False,
        attn_implementation=attention,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[features * 3 // 4 * factor for factor in (1, 2, 4, 8)],
        fusion_hidden_size=features,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


def write_weights(case: str, folder: Path) -> None:
    """Runs in a separate process, in PyTorch's environment."""
    network = peer.case(case)[0]
    command = [str(harness.PYTHON["torch"]), __file__, "--write", network]
    command.append(str(weights(network, folder)))
    subprocess.run(command, check=True, env=harness.environment())


def write(network: str, path: Path) -> None:
    import torch

    model = torch_model(network, "sdpa")
    if path.suffix:
        torch.save(model.state_dict(), path)
    else:
        model.save_pretrained(path)


def torch_way(attention: str):
    def prepare(case: str, folder: Path):
        import torch

        torch.set_num_threads(harness.cores())
        network, height, width = peer.case(case)
        model = torch_model(network, attention).eval()  # from the file's seed
        image = torch.from_numpy(image_of(case).transpose(0, 3, 1, 2).copy())

        @torch.inference_mode()
        def compute():
            result = model(image)
            result = result if network == "midas_v21" else result.predicted_depth
            return {"depth": result.numpy().reshape(height, width)}

        return compute

    return prepare


def jax_way(case: str, folder: Path):
    import jax

    import diffdepth_jax

    network, height, width = peer.case(case)
    model = diffdepth_jax.load(weights(network, folder))
    image, apply = image_of(case), jax.jit(model.model.apply)
    return lambda: {"depth": np.asarray(apply(model.variables, image)).reshape(height, width)}


QUESTION = Question(
    "networks",
    CASES,
    {
        "torch": Way("torch", torch_way("sdpa")),
        "torch, plain attention": Way("torch", torch_way("eager"), cases=()),
        "jax": Way("jax", jax_way),
    },
    write_weights,
)

if __name__ == "__main__":
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2], Path(sys.argv[3]))
    else:
        harness.main(QUESTION, __doc__)
