"""Code that the scripts share."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from diffdepth_jax import cli
from diffdepth_jax.errors import ConfigError

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    evaluation = dict(protocol="kitti_eigen", crop="garg", max_depth=70.0, flip_tta=True)
    return ConfigDict(dict(seed=3, evaluation=evaluation))
"""
IN_FILE = {"protocol": "kitti_eigen", "crop": "garg", "max_depth": 70.0, "flip_tta": True}


@pytest.mark.filterwarnings("ignore:the load_module")  # from ml_collections
@pytest.mark.parametrize(
    "arguments, given, expected",
    [
        ([], {}, IN_FILE),
        ([], {"crop": "eigen"}, IN_FILE | {"crop": "eigen"}),
        ([], {"protocol": "kitti_eigen"}, IN_FILE),
        ([], {"protocol": "release"}, {"protocol": "release", "flip_tta": True}),
        (["protocol=release"], {}, {"protocol": "release", "flip_tta": True}),
        (["protocol=kitti_eigen"], {}, IN_FILE),
        (
            ["protocol=kitti_official", "max_depth=50.0"],
            {},
            {"protocol": "kitti_official", "max_depth": 50.0, "flip_tta": True},
        ),
        (
            ["max_depth=50.0"],
            {"protocol": "release"},
            {"protocol": "release", "max_depth": 50.0, "flip_tta": True},
        ),
    ],
)
def test_another_protocol_drops_the_options_in_the_file(tmp_path, arguments, given, expected):
    (tmp_path / "config.py").write_text(CONFIG)
    values = flags.FlagValues()
    arguments = [f"--config.evaluation.{argument}" for argument in arguments]
    arguments = ["prog", f"--config={tmp_path / 'config.py'}", *arguments]
    holder = config_flags.DEFINE_config_file(
        "config", lock_config=False, flag_values=values, sys_argv=arguments
    )
    values(arguments)
    mapping = cli.mapping(holder, given, flag_values=values)
    assert mapping == {"seed": 3, "evaluation": expected}


@pytest.mark.filterwarnings("ignore:the load_module")  # from ml_collections
@pytest.mark.parametrize(
    "arguments, source",
    [
        ([], {"name": "kitti", "root": "a", "depth": "dense"}),
        (["source.root=b"], {"name": "kitti", "root": "b", "depth": "dense"}),
        (["source.name=kitti"], {"name": "kitti", "root": "a", "depth": "dense"}),
        (["source.name=folder"], {"name": "folder"}),
        (["source.root=b", "source.name=folder"], {"name": "folder", "root": "b"}),
        (["source.name=folder", "source.new=1"], {"name": "folder", "new": 1}),
    ],
)
def test_another_source_drops_the_fields_in_the_file(tmp_path, arguments, source):
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    source = {'name': 'kitti', 'root': 'a', 'depth': 'dense'}\n"
        "    return ConfigDict({'source': source, 'data': {'train': {'source': source}}})\n"
    )
    values = flags.FlagValues()
    arguments = [
        f"--config.{group}{argument}" for argument in arguments for group in ("", "data.train.")
    ]
    arguments = ["prog", f"--config={tmp_path / 'config.py'}", *arguments]
    holder = config_flags.DEFINE_config_file(
        "config",
        lock_config=False,
        accept_new_attributes=True,
        flag_values=values,
        sys_argv=arguments,
    )
    values(arguments)
    assert cli.chosen_mapping(holder, "source", "gone", flag_values=values)["source"] == source
    assert cli.mapping(holder, flag_values=values)["data"]["train"]["source"] == source


ENV = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
SCRIPT = """
import os, signal, sys
from absl import flags
from diffdepth_jax import cli, ending, errors

cli.define_directory("output", "Where it goes.")
flags.DEFINE_integer("seed", 0, "A number.")
CONFIG = cli.define_config(required=False)

def main(_):
    {body}

cli.run(main)
"""


@pytest.fixture
def script(tmp_path):
    """Runs a script with this statement as its main function."""

    def run(body, *arguments, **options):
        (tmp_path / "script.py").write_text(SCRIPT.format(body=body))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENV} | options
        command = [sys.executable, "script.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, text=True, **options)

    return run


@pytest.mark.parametrize(
    "error, one_line",
    [
        ("errors.ConfigError('the crop is 7')", True),
        ("errors.WeightsError('the crop is 7')", True),
        ("errors.MissingFileError('the crop is 7')", True),
        ("ValueError('the crop is 7')", False),
        ("OSError('the crop is 7')", False),
        ("FloatingPointError('the crop is 7')", False),
    ],
)
def test_only_user_errors_are_shown_without_traceback(script, error, one_line):
    result = script(f"raise {error}")
    assert ("Traceback" in result.stderr) is not one_line
    assert result.stderr.splitlines()[-1].endswith("the crop is 7")
    assert result.returncode == (2 if one_line else 1)


def test_names_in_errors_cannot_control_the_terminal(script):
    result = script(r"raise errors.DataError('a\x1b[2J\x9b\r\udcff.png\nis 7')")
    assert result.returncode == 2
    error = r"script.py: error: a\x1b[2J\x9b\r\udcff.png"
    assert result.stderr.splitlines() == [error, "is 7"]


@pytest.mark.parametrize(
    "body, says",
    [
        ("os.kill(os.getpid(), signal.SIGINT)", "interrupted"),
        (
            "raise KeyboardInterrupt('run the same command to resume')",
            "run the same command to resume",
        ),
    ],
)
def test_ctrl_c_is_one_line(script, body, says):
    result = script(body)
    assert result.returncode == 130
    assert result.stderr == f"script.py: {says}\n"


@pytest.mark.parametrize("arguments", [["--output="], ["--output= "]])
def test_a_directory_must_be_named(script, arguments):
    result = script("print('ran')", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "--output" in line and "empty" in line
    with pytest.raises(ConfigError, match=r"--output.*empty"):
        cli.directory("--output", arguments[0].removeprefix("--output="))
    assert cli.directory("--output", "here") == Path("here")


@pytest.mark.parametrize("flag", ["--seed", "--config.seed"])
def test_numbers_beyond_64_bits_are_an_error_that_names_the_flag(script, tmp_path, flag):
    (tmp_path / "config.py").write_text(CONFIG)
    for value in (2**63, -(2**63) - 1):
        result = script("print('ran')", "--config=config.py", f"{flag}={value}")
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert f"{flag} is {value}" in line and "64 bits" in line
    largest = script("print('ran')", "--config=config.py", f"{flag}={2**63 - 1}")
    assert largest.stdout == "ran\n", largest.stderr


def test_a_tuple_given_twice_takes_the_last_value(script, tmp_path):
    config = "from ml_collections import ConfigDict\ndef get_config():\n"
    (tmp_path / "config.py").write_text(config + "    return ConfigDict(dict(crop=(5, 6)))\n")
    flags = ("--config.crop=(1,2)", "--config.crop=(3,4)")
    result = script("print(cli.mapping(CONFIG)['crop'])", "--config=config.py", *flags)
    assert result.stdout == "(3, 4)\n", result.stderr


CONFIG_FILES = {
    "text.md": ("# A title\n\nThis is not Python.\n", "line 3"),
    "other.py": ("x = 1\n", "get_config"),
    "wrong.py": ("def get_config():\n    return undefined\n", "line 2.*undefined"),
    "needs.py": ("import not_there\n", "line 1.*not_there"),
    "nothing.py": ("def get_config():\n    pass\n", "get_config.*NoneType.*ConfigDict"),
    "bytes.py": (b"x = '\xff'\n", "utf-8"),
    "folder": (None, "directory"),
    "absent.py": (None, "no file"),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_file_that_is_not_a_config_is_a_one_line_error(script, tmp_path, name):
    content, says = CONFIG_FILES[name]
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = script("print('ran')", f"--config={name}")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "--config" in line and name in line and re.search(says, line), line


PRINTS = "print('out'); print('error', file=sys.stderr); os.write(2, b'x'); print('more')"


def test_a_broken_pipe_does_not_end_a_run(script):
    """A pipe whose reader is gone, as after `2>&1 | head`."""
    read, write = os.pipe()
    os.close(read)
    result = script(PRINTS + "; sys.stderr.write('again')", stderr=write)
    assert (result.returncode, result.stdout) == (0, "out\nmore\n")
    result = script(PRINTS + "; sys.stdout.flush(); open('done', 'w')", stdout=write, stderr=write)
    os.close(write)
    assert result.returncode == 0


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(script, tmp_path, closed):
    """Output does not end up in a file that happens to get the free descriptor either."""
    script("pass")
    write = "file = open('file', 'w'); os.write(2, b'library'); file.write('content')"
    (tmp_path / "script.py").write_text(SCRIPT.format(body=f"{write}; print('a', file=sys.stderr)"))
    command = f"{sys.executable} script.py {closed}"
    result = subprocess.run(command, cwd=tmp_path, shell=True, stdout=subprocess.PIPE, env=ENV)
    assert (result.returncode, result.stdout) == (0, b"")
    assert (tmp_path / "file").read_text() == "content"


def test_a_full_disk_behind_stderr_does_not_end_a_run(script):
    with open("/dev/full", "w") as full:
        result = script("sys.stderr.write('a' * 10_000); print('ran')", stderr=full)
    assert (result.returncode, result.stdout) == (0, "ran\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_full_disk_behind_stdout_is_a_one_line_error(script, size):
    with open("/dev/full", "w") as full:
        result = script(f"print('a' * {size})", stdout=full)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "standard output" in line and "No space left" in line


def test_ctrl_c_during_imports_ends_the_program_even_if_caught(script):
    body = """
    with ending.importing():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:  # as loading an extension may do
            pass
    print("went on")"""
    result = script(body)
    assert result.returncode == 130 and result.stdout == ""
    assert result.stderr == "script.py: interrupted\n"


DROPPED = {
    "collection": """
    import gc
    gc.callbacks.append(interrupt)
    gc.collect()""",
    "destructor": """
    class Ending:
        __del__ = interrupt
    Ending()""",
}


@pytest.mark.parametrize("place", DROPPED)
def test_ctrl_c_is_not_lost_where_python_drops_exceptions(script, place):
    body = f"""
    signals = [signal.SIGINT]
    def interrupt(*_):
        while signals:
            os.kill(os.getpid(), signals.pop())
    {DROPPED[place]}
    while True:  # the repeated one may be lost there too
        {"gc.collect()" if place == "collection" else "Ending()"}"""
    result = script(body, timeout=600)
    assert result.returncode == 130
    assert result.stderr == "script.py: interrupted\n"


@pytest.mark.parametrize("place", ["entering", "releasing", "acquiring"])
def test_ctrl_c_while_a_lock_changes_hands_leaves_it_free(script, place):
    body = f"""
    import threading, time
    signals = [signal.SIGINT]
    def interrupt(place):
        if place == "{place}" and signals:
            os.kill(os.getpid(), signals.pop())
    class Lock:
        def __init__(self):
            self.lock = threading.Lock()
        def __enter__(self):
            self.lock.acquire()
            interrupt("entering")
        def __exit__(self, *_):
            self.lock.release()
        def release(self):
            self.lock.release()
            interrupt("releasing")
        def acquire(self, *arguments):
            if not arguments:  # after waiting
                interrupt("acquiring")
            return self.lock.acquire(*arguments)
    lock = Lock()
    condition = threading.Condition(lock)
    try:
        with condition:
            condition.wait(timeout=0)
        while True:
            time.sleep(1)
    finally:
        print("free" if lock.lock.acquire(blocking=False) else "held")"""
    result = script(body, timeout=600)
    assert (result.returncode, result.stdout) == (130, "free\n")
    assert result.stderr == "script.py: interrupted\n"


def test_other_dropped_exceptions_are_still_reported(script):
    body = """
    class Ending:
        def __del__(self):
            raise OSError("in a destructor")
    Ending()"""
    result = script(body)
    assert result.returncode == 0 and "OSError: in a destructor" in result.stderr


def test_users_see_only_the_message_of_a_warning(script):
    result = script("import warnings; warnings.warn('weights of \\x1b are odd')")
    assert result.returncode == 0
    assert result.stderr == "warning: weights of \\x1b are odd\n"
