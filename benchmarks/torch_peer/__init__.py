"""DiffusionDepth in plain PyTorch, for the benchmarks: the peer that this project is timed against.

Written as a PyTorch user would: eager modules, `torch.nn.functional`, channels_last. Names are
those of the authors' state dicts, so that weights written by `tools/export_torch.py` load strictly.
Imports neither JAX nor this project's package.
"""
