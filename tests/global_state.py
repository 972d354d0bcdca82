"""Prints as JSON what importing modules changes outside them.

    python tests/global_state.py MODULES FIRST

Both are JSON lists. The statements in FIRST, imports of other packages, run beforehand: what they
change does not count.
"""

import csv
import decimal
import faulthandler
import gc
import importlib
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import matplotlib
import numpy as np
from absl import flags
from absl import logging as absl_logging
from jax._src import xla_bridge
from ml_collections import config_flags
from PIL import Image, ImageFile


def snapshot() -> dict[str, Any]:
    """What the whole process shares, by name."""
    return {
        **_interpreter(),
        **_libraries(),
        **{f"os.environ {name}": value for name, value in os.environ.items()},
        **{f"signal {int(each)}": repr(signal.getsignal(each)) for each in signal.valid_signals()},
        **{f"flag {name}": repr(flags.FLAGS[name]) for name in flags.FLAGS},
        **_loggers(),
    }


def _interpreter() -> dict[str, Any]:
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    umask = os.umask(0)
    os.umask(umask)
    return {
        "working directory": os.getcwd(),
        "umask": umask,
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "sys.path": list(sys.path),
        "sys.argv": list(sys.argv),
        "sys.meta_path": repr(sys.meta_path),
        "sys.path_hooks": repr(sys.path_hooks),
        "hooks": repr((sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook)),
        "streams": repr((sys.stdin, sys.stdout, sys.stderr)),
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "garbage collector": (gc.isenabled(), gc.get_threshold()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "faulthandler": faulthandler.is_enabled(),
        "warnings": repr(warnings.filters),
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal": repr(decimal.getcontext()),
        "socket timeout": socket.getdefaulttimeout(),
        "csv field size": csv.field_size_limit(),
        "random": repr(random.getstate()),
    }


def _libraries() -> dict[str, Any]:
    found = {
        "numpy random": repr(np.random.get_state()),  # noqa: NPY002
        "numpy errors": np.geterr(),
        "numpy printing": repr(np.get_printoptions()),
        "jax devices in use": xla_bridge.backends_are_initialized(),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "absl verbosity": absl_logging.get_verbosity(),
        "config flag parsers": repr(config_flags.config_flags._FIELD_TYPE_TO_PARSER),
        **{f"jax.config {name}": repr(value) for name, value in jax.config.values.items()},
        **{f"matplotlib {name}": repr(value) for name, value in dict(matplotlib.rcParams).items()},
    }
    if "mitsuba" in sys.modules:
        import drjit
        import mitsuba

        found["mitsuba"] = (mitsuba.variant(), drjit.thread_count())
    return found


def _loggers() -> dict[str, Any]:
    names = [name for name, logger in logging.root.manager.loggerDict.items()
             if isinstance(logger, logging.Logger)]  # fmt: skip
    found = {
        "logger class": repr(logging.getLoggerClass()),
        "logging": logging.root.manager.disable,
    }
    for logger in (logging.root, *map(logging.getLogger, names)):
        state = (logger.level, logger.handlers, logger.filters, logger.propagate, logger.disabled)
        found[f"logger {logger.name}"] = repr(state)
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what differs; a new logger with default settings does not count."""
    plain = repr((logging.NOTSET, [], [], True, False))
    return [
        name
        for name in dict.fromkeys((*before, *after))
        if before.get(name, plain if name.startswith("logger ") else None) != after.get(name)
    ]


def main() -> None:
    modules, first = map(json.loads, sys.argv[1:])
    missing = []
    for statement in first:
        try:
            exec(statement, {})
        except ModuleNotFoundError as error:
            missing.append(error.name)
    found, not_imported = {}, []
    for name in modules:
        before = snapshot()
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in missing:
                raise
            not_imported.append(name)
        if changed := changes(before, snapshot()):
            found[name] = changed
    print(json.dumps({"changes": found, "not_imported": not_imported, "missing": missing}))


if __name__ == "__main__":
    main()
