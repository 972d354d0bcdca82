"""Image encoders; each file offers `Config`, `VARIANTS`, `Encoder`, `rules`, `infer`."""
