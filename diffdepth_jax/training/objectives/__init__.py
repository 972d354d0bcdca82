"""What is minimised; each file offers `Config` and `build(config, model, num_steps) -> loss_fn`."""
