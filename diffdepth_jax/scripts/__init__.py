"""The command line: `train.py` and so on in the repository, `diffdepth-train` and so on in a wheel.

Each module has a function `run` that defines its flags, so that importing a module defines none.
"""
