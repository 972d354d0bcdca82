"""Flax linen modules: layers, encoders, necks, codec, denoiser, and whole networks."""
