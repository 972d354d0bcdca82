"""Shared by the tests of training: an experiment that costs next to nothing."""

import contextlib
import copy
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import tiny_parts
from training_client import Server


@pytest.fixture(scope="session")
def server():
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def tiny(monkeypatch):
    """Registers the tiny parts and returns an experiment that uses them."""
    tiny_parts.register(monkeypatch.setitem)
    return copy.deepcopy(tiny_parts.EXPERIMENT)
