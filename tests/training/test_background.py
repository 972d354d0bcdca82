import asyncio
import gc
import logging
import sys
import types

import pytest
from absl import logging as absl_logging

from diffdepth_jax.training import background

RAISED = RuntimeError("Event loop is closed")  # TensorStore raises it once per array


@pytest.fixture
def logged():
    """The messages that pass absl's logger, which Orbax uses."""
    handler = logging.Handler()
    messages = []
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = absl_logging.get_absl_logger()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def raised(monkeypatch):
    """The exceptions that reach the hook for unraisable ones."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: found.append(each.exc_value))
    return found


def fail():
    """Fails like Orbax and TensorStore in their threads; then something else goes wrong."""
    logger = absl_logging.get_absl_logger()
    for place in ("site-packages/orbax/checkpoint/future.py", "elsewhere.py"):
        for level in (logging.WARNING, logging.ERROR):
            message = f"{logging.getLevelName(level)} of {place}"
            logger.handle(logger.makeRecord("absl", level, place, 1, message, (), None))
    for error in (RAISED, ValueError("other")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))


def test_messages_of_orbax_and_tensorstore_about_a_failure_are_suppressed(logged, raised):
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
    assert len(logged) == 4  # outside, nothing is suppressed: other code may use Orbax


def test_debug_logging_shows_everything(logged, raised, monkeypatch):
    monkeypatch.setattr(absl_logging, "get_verbosity", lambda: absl_logging.DEBUG)
    with background.reported_once():
        fail()
    assert len(logged) == 4 and len(raised) == 2


async def lose_failures():
    """Like Orbax with many arrays: waits for the first failure and drops the others."""
    tasks = [asyncio.ensure_future(fail_array(number)) for number in range(3)]
    await asyncio.wait(tasks)
    tasks[0].result()


async def fail_array(number):
    raise ValueError(f"disk is full, array {number}")


def test_asyncio_does_not_report_the_failures_after_the_first(caplog):
    with background.reported_once():
        pass
    with pytest.raises(ValueError, match="array 0"):
        asyncio.run(lose_failures())
    gc.collect()  # asyncio reports when an object is collected
    logging.getLogger("asyncio").error("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
