"""Shared by the tests of training: an experiment that costs next to nothing."""

import contextlib
import copy
import sys
from pathlib import Path

import jax
import pytest

sys.path.append(str(Path(__file__).parent))
import tiny_parts
from training_client import Server


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Most tests here train the same network, so compile it once."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("compiled")))
    jax.config.update(names[1], 0.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with contextlib.closing(Server(tmp_path_factory.mktemp("server"))) as server:
        yield server


@pytest.fixture
def tiny(monkeypatch):
    """Registers the tiny parts and returns an experiment that uses them."""
    tiny_parts.register(monkeypatch.setitem)
    return copy.deepcopy(tiny_parts.EXPERIMENT)
