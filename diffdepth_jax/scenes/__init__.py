"""Rendered street scenes with exact depth (the optional extra `render`)."""
