"""Rendered streets and table-tops with exact depth (the optional extra `render`)."""
