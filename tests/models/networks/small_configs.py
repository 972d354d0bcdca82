"""A small config of every registered network."""

# Shared by DiffusionDepth and its control.
DIFFUSION = {
    "encoder": {"name": "resnet", "depths": (1, 1), "widths": (4, 8)},
    "neck": {"features": 8},
    "codec": {"latent_channels": 4, "initial_depth": 8.0},
    "max_depth": 80.0,
}
# A small config of each network. A prediction that ends in a ReLU must not be zero everywhere: for
# such networks `SEEDS` selects other weights.
SMALL = {
    "diffusion_depth": {
        **DIFFUSION,
        "denoiser": {"hidden_features": 8},
        "diffusion": {"num_inference_steps": 2},
    },
    "regression": {**DIFFUSION, "hidden_features": 8},
    "depth_anything": {
        "encoder": {"name": "dinov2", "embed_dim": 8, "num_heads": 1, "hidden_features": 16}
        | {"depth": 8, "taps": (1, 3, 5, 7), "grid": 3},
        "project_features": (4, 6, 8, 10),
        "fused_features": 8,
        "output_features": 4,
        "max_depth": 20.0,
    },
    "dpt": {
        "encoder": {"name": "vit", "embed_dim": 16, "depth": 4, "num_heads": 2, "grid": 2}
        | {"hidden_features": 24, "taps": (0, 1, 2, 3)},
        "project_features": (8, 8, 8, 8),
        "fused_features": 8,
        "output_features": 32,  # as in transformers
    },
    "monodepth2": {
        "encoder": {"name": "torchvision_resnet", "depths": (1,) * 4, "widths": (4,) * 4}
        | {"stem_features": True},
        "decoder_features": (4,) * 5,
        "input_size": (32, 64),
    },
    "midas": {
        "encoder": {"name": "efficientnet_lite", "stem": 4, "depths": (1,) * 7, "widths": (4,) * 7},
        "head": {
            "project_features": (None,) * 4,
            "factors": ("1",) * 4,
            "level_features": (4, 8, 16, 32),
            "narrowing": True,
            "explicit_sizes": False,
            "output_features": 4,
            "output_align_corners": False,
        },
        "input_size": 256,
    },
    "zoedepth": {
        "core": {
            "name": "dpt",
            "encoder": {"name": "beit", "embed_dim": 8, "depth": 4, "num_heads": 2, "grid": 2}
            | {"hidden_features": 16, "taps": (0, 1, 2, 3)},
            "project_features": (4, 6, 8, 10),
            "fused_features": 8,
            "output_features": 4,
        },
        "heads": {"num_bins": 6, "embedding_features": 8, "seed_features": 256}
        | {"projector_features": 128, "distribution_features": 6, "attractors": (4, 3, 2, 1)},
    },
}
SEEDS: dict[str, int] = {"dpt": 10}
