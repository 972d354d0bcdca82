"""Whole depth networks; each file offers `Config`, `build`, `INPUT`, `OUTPUT`, `rules`, `infer`."""
