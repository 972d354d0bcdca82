"""Time and memory of a whole prediction, from image to depth, against plain PyTorch.

    python benchmarks/prediction.py [--cases="swin_tiny 352x1216"] [--ways=torch,jax]

`DepthModel.predict` on one uint8 image, with the peer's weights and x_T. With
--ways=torch,jax,torch.compile, the peer's denoiser and condition are compiled as well, which takes
minutes. Appends to results/benchmarks.csv.
"""

from pathlib import Path

import harness
import peer
from harness import Question, Way


def torch_way(compiled: bool):
    def prepare(case: str, folder: Path):
        import torch
        from torch_peer import network

        variant, height, width = peer.case(case)
        model = peer.torch_model(variant, peer.weights(variant, folder))
        if compiled:
            model.depth_head.model = torch.compile(model.depth_head.model)
            model.condition = torch.compile(model.condition)
        image, noise = peer.image(height, width), peer.to_torch(peer.noise(height, width))

        @torch.no_grad()
        def compute():
            depth = model(network.normalised(image), noise, peer.STEPS)
            return {"depth": depth[0, 0].numpy()}

        return compute

    return prepare


def jax_way(case: str, folder: Path):
    import diffdepth_jax

    variant, height, width = peer.case(case)
    model = diffdepth_jax.load(peer.weights(variant, folder))
    image, noise = peer.image(height, width), peer.noise(height, width)[0]
    return lambda: {"depth": model.predict(image, noise, flip_tta=False)}


QUESTION = Question(
    "prediction",
    ("res18 352x1216", "swin_tiny 352x1216", "swin_large 352x1216"),
    {
        "torch": Way("torch", torch_way(compiled=False)),
        "jax": Way("jax", jax_way),
        "torch.compile": Way("torch", torch_way(compiled=True), optional=True, cases=()),
    },
    peer.write_weights,
)

if __name__ == "__main__":
    harness.main(QUESTION, __doc__)
