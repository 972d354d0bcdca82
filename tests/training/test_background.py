import asyncio
import gc
import logging
import sys
import types

import pytest
from absl import logging as absl_logging

from diffdepth_jax.training import background

RAISED = RuntimeError("Event loop is closed")  # by TensorStore, once for every array


@pytest.fixture
def logged():
    """The messages that pass the logger of absl, which Orbax uses."""
    handler = logging.Handler()
    messages = []
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = absl_logging.get_absl_logger()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def raised(monkeypatch):
    """What reaches the hook for exceptions that nobody can catch."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: found.append(each.exc_value))
    return found


def fail():
    """As Orbax and TensorStore do in their threads; then something else goes wrong."""
    logger = absl_logging.get_absl_logger()
    for place in ("site-packages/orbax/checkpoint/future.py", "elsewhere.py"):
        for level in (logging.WARNING, logging.ERROR):
            message = f"{logging.getLevelName(level)} of {place}"
            logger.handle(logger.makeRecord("absl", level, place, 1, message, (), None))
    for error in (RAISED, ValueError("other")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))


def test_what_orbax_and_tensorstore_tell_of_a_failure_is_left_to_the_one_error(logged, raised):
    with background.reported_once():
        fail()
    orbax, elsewhere = "site-packages/orbax/checkpoint/future.py", "elsewhere.py"
    assert logged == [
        f"WARNING of {orbax}",
        f"WARNING of {elsewhere}",
        f"ERROR of {elsewhere}",
    ]
    assert [str(error) for error in raised] == ["other"]
    logged.clear()
    fail()
    assert len(logged) == 4  # outside, others may use Orbax too


def test_those_who_ask_for_details_get_all(logged, raised, monkeypatch):
    monkeypatch.setattr(absl_logging, "get_verbosity", lambda: absl_logging.DEBUG)
    with background.reported_once():
        fail()
    assert len(logged) == 4 and len(raised) == 2


async def lose_failures():
    """As Orbax does of many arrays: waits for the first that fails, and drops the others."""
    tasks = [asyncio.ensure_future(fail_array(number)) for number in range(3)]
    await asyncio.wait(tasks)
    tasks[0].result()


async def fail_array(number):
    raise ValueError(f"disk is full, array {number}")


def test_asyncio_does_not_tell_of_those_that_failed_beside_the_first(caplog):
    with background.reported_once():
        pass
    with pytest.raises(ValueError, match="array 0"):
        asyncio.run(lose_failures())
    gc.collect()  # asyncio tells when an object goes, whenever that is
    logging.getLogger("asyncio").error("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
