"""Reads our own and other checkpoints, and maps names to leaves by tables. Model-independent."""
