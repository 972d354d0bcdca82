"""What is minimised; each file offers `Config` and `build(config, model) -> loss_fn`."""
