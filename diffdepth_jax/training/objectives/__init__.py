"""Training objectives; each has `Config` and `build(config, model, num_steps) -> loss_fn`."""
