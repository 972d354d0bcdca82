"""Generates adverse-condition images from clean ones, with labels, checks and a gallery."""
