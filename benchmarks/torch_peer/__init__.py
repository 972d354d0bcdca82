"""DiffusionDepth in plain PyTorch, for the benchmarks: the peer that this project is timed against.

Written as a user of PyTorch would write it: eager modules, `torch.nn.functional`, channels_last,
one call after the other. Names are those of the authors' state dicts, so that weights written by
`tools/export_torch.py` load strictly. Knows neither JAX nor this project's package.
"""
