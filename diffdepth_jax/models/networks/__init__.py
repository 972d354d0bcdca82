"""Whole depth networks, one per file; `network.py` defines their contract."""
