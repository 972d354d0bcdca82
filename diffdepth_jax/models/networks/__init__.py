"""Complete depth networks, one per file; `network.py` defines their interface."""
