"""The command line: `train.py` and its siblings of the project, and `diffdepth-train` of a wheel.

Each module has a `run`, which defines the flags, so that importing a module defines none.
"""
