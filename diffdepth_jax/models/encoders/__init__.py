"""Image encoders, one per file; `encoder.py` defines their interface."""
