"""Image encoders, one a file; `encoder.py` says what each offers."""
