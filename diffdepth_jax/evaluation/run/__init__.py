"""Runs a model or saved predictions over a data set; resumable, and shareable by processes."""
