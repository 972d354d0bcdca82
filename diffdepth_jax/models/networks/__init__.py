"""Whole depth networks, one a file; `network.py` says what each offers."""
