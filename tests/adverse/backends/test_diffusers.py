"""The host side of the diffusers backend, with a stand-in for the PyTorch process."""

import dataclasses
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import config as configs
from diffdepth_jax import registry
from diffdepth_jax.adverse import processes
from diffdepth_jax.adverse.backends import Item, diffusers
from diffdepth_jax.errors import (
    ConfigError,
    FileError,
    MissingFileError,
    MissingPackageError,
    UserError,
    WeightsError,
)
from tests.adverse import model_folders

SIZE = (12, 20)


@pytest.fixture
def config(tmp_path):
    base = model_folders.write_base(tmp_path / "sd")
    adapter = model_folders.write_adapter(tmp_path / "adapter")
    return diffusers.Config(base=str(base), control=str(adapter), timeout=60, threads=1)


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "work"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "clean.png")
    np.save(folder / "control.npy", rng.random(SIZE, np.float32))
    return folder


def make_items(workdir, count, **changes):
    return [
        Item(
            **{
                "key": f"{index}/night/0",
                "condition": "night",
                "seed": index,
                "prompt": f"a street, {index}",
                "negative_prompt": "blurred",
                "image": workdir / "clean.png",
                "control": workdir / "control.npy",
                "depth": workdir / "control.npy",
                "intrinsics": None,
                "output": workdir / "images" / f"{index}.png",
                "size": SIZE,
                **changes,
            }
        )
        for index in range(count)
    ]


def in_batches(items, size=2):
    return [items[start : start + size] for start in range(0, len(items), size)]


@pytest.fixture
def opened(config, workdir, tmp_path):
    """Opens the backend with a stand-in whose behaviour the test chooses."""

    def open_with(changed=config, **behaviour):
        behaviour["hung"] = str(tmp_path / "hung")
        python = model_folders.write_interpreter(tmp_path / "python", **behaviour)
        return diffusers.open(changed, python=str(python), workdir=workdir)

    return open_with


@pytest.fixture
def time_out_when_hung(monkeypatch, tmp_path):
    """Time-outs expire when the stand-in says that it hangs, not by the clock: on a busy machine
    a working process can be slow too."""

    class Queue(queue.SimpleQueue):
        def get(self, timeout=None):
            while timeout is not None:
                try:
                    return super().get(timeout=0.01)
                except queue.Empty:
                    if (tmp_path / "hung").exists():
                        (tmp_path / "hung").unlink()
                        raise
            return super().get()

    replaced = types.SimpleNamespace(SimpleQueue=Queue, Empty=queue.Empty)
    monkeypatch.setattr(processes, "queue", replaced)


def made(workdir):
    return sorted(path.name for path in (workdir / "images").iterdir())


def test_it_is_registered():
    assert registry.module("backend", "diffusers") is diffusers


def test_every_item_gets_an_outcome_and_an_image(opened, workdir):
    items = make_items(workdir, 5)
    with opened() as session:
        session.check(items)
        outcomes = list(session.generate(in_batches(items)))
        again = list(session.generate(in_batches(items[:1])))
    assert [outcome.key for outcome in outcomes] == [item.key for item in items]
    assert not any(outcome.error or outcome.details for outcome in outcomes + again)
    assert made(workdir) == [f"{index}.png" for index in range(5)]
    assert list((workdir / "logs").iterdir()) == []  # nothing went wrong


def test_several_processes_share_the_batches(opened, config, workdir):
    items = make_items(workdir, 9)
    several = dataclasses.replace(config, processes=3)
    with opened(several, delay=0.01) as session:
        outcomes = list(session.generate(in_batches(items)))
    assert sorted(outcome.key for outcome in outcomes) == [item.key for item in items]
    assert len(made(workdir)) == 9


def test_each_gpu_gets_a_process(opened, workdir, tmp_path):
    log = tmp_path / "log"
    items = make_items(workdir, 6)
    with opened(devices=3, delay=0.2, log=str(log)) as session:
        list(session.generate(in_batches(items, 1)))
        assert len(list((workdir / "logs").iterdir())) == 3


@pytest.mark.parametrize("how", ["die_at", "hang_at", "rubbish_at"])
def test_only_an_image_that_always_breaks_the_process_is_given_up(
    opened, workdir, how, time_out_when_hung
):
    items = make_items(workdir, 6)
    with opened(**{how: [items[2].key]}) as session:
        outcomes = {outcome.key: outcome for outcome in session.generate(in_batches(items, 3))}
    assert outcomes.keys() == {item.key for item in items}
    failed = [key for key, outcome in outcomes.items() if outcome.error]
    assert failed == [items[2].key]
    messages = {
        "die_at": "signal SIGKILL.*memory",
        "hang_at": "did not respond for 60 seconds",
        "rubbish_at": "'Downloading: 100%', which is not a valid reply",
    }
    assert re.search(messages[how], outcomes[items[2].key].error)
    assert len(made(workdir)) == 5


@pytest.mark.parametrize("size", [1, 3])
def test_a_process_that_dies_once_loses_no_image(opened, workdir, tmp_path, size):
    items = make_items(workdir, 6)
    behaviour = {"die_once_at": [items[4].key], "once": str(tmp_path / "once")}
    with opened(**behaviour) as session:
        outcomes = list(session.generate(in_batches(items, size)))
    assert [outcome.key for outcome in outcomes] == [item.key for item in items]
    assert not any(outcome.error for outcome in outcomes)


def test_a_log_that_an_error_refers_to_is_kept(opened, workdir):
    items = make_items(workdir, 6)
    with opened(die_at=[items[2].key]) as session:
        errors = [outcome.error for outcome in session.generate(in_batches(items, 3))]
    (error,) = filter(None, errors)
    log = Path(re.search(r"see (.*\.log)\)", error)[1])
    assert "printed by a library" in log.read_text()


def test_a_process_that_dies_at_every_image_ends_the_run(opened, workdir):
    items = make_items(workdir, 20)
    with (
        opened(die_at=[item.key for item in items]) as session,
        pytest.raises(FileError, match="3 images in a row"),
    ):
        list(session.generate(in_batches(items)))


def test_failures_of_single_items_are_outcomes(opened, workdir):
    items = make_items(workdir, 4)
    with opened(fail_at=[items[1].key], flag_at=[items[2].key]) as session:
        outcomes = list(session.generate(in_batches(items)))
    assert [outcome.error for outcome in outcomes] == [
        None,
        "the clean image cannot be read",
        None,
        None,
    ]
    assert [dict(outcome.details) for outcome in outcomes] == [{}, {}, {"flagged": True}, {}]


def test_a_full_disk_ends_the_run(opened, workdir):
    items = make_items(workdir, 6)
    with (
        opened(full_disk_at=[items[1].key]) as session,
        pytest.raises(FileError, match="No space left"),
    ):
        list(session.generate(in_batches(items)))
    assert made(workdir) == ["0.png"]


@pytest.fixture
def alive(tmp_path):
    """A named pipe and its reading end, which ends once no process holds the pipe open."""
    os.mkfifo(tmp_path / "alive")
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    yield str(tmp_path / "alive"), reader
    os.close(reader)


def test_the_processes_end_when_the_consumer_stops(opened, workdir, alive):
    pipe, reader = alive
    with opened(delay=0.05, alive=pipe) as session:
        outcomes = session.generate(in_batches(make_items(workdir, 500), 1))
        next(outcomes)
        with pytest.raises(BlockingIOError):  # open and empty
            os.read(reader, 1)
        outcomes.close()
        assert os.read(reader, 1) == b""
    assert len(made(workdir)) < 500


def test_the_process_ends_when_its_host_is_killed(config, workdir, tmp_path, alive):
    """Otherwise it would keep writing while another run does."""
    pipe, reader = alive
    python = model_folders.write_interpreter(tmp_path / "python", delay=0.1, alive=pipe)
    script = f"""
from tests.adverse.backends.test_diffusers import make_items
from diffdepth_jax.adverse.backends import diffusers
from pathlib import Path
workdir = Path({str(workdir)!r})
with diffusers.open(diffusers.{config!r}, python={str(python)!r}, workdir=workdir) as session:
    for outcome in session.generate([make_items(workdir, 200)]):
        print(outcome.key, flush=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    host.stdout.readline()
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # only after all images if it does not notice
    assert len(made(workdir)) < 200


@pytest.mark.parametrize(
    "opening, error, complaint",
    [
        ("die", FileError, "exited with status 1 .no module named torch; see .*run `make torch`"),
        ("hang", FileError, "did not respond"),
        ("rubbish", FileError, "'Downloading: 100%', which is not a valid reply"),
        ("old", FileError, "protocol 0, not 1"),
        ("refuse", WeightsError, "the weights do not fit"),
    ],
)
def test_a_process_that_fails_to_start_ends_the_run(
    opened, opening, error, complaint, time_out_when_hung
):
    with pytest.raises(error, match=complaint), opened(opening=opening):
        pass


@pytest.mark.parametrize("interpreter", ["/bin/cat", "/bin/false", "/bin/echo"])
def test_a_bad_interpreter_is_named(config, workdir, interpreter):
    with (
        pytest.raises(FileError, match=f"the worker run by {interpreter} "),
        diffusers.open(config, python=interpreter, workdir=workdir),
    ):
        pass


def test_an_interpreter_without_torch_is_reported_as_such(config, workdir, tmp_path):
    """The real worker, without its packages."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    with (
        pytest.raises(MissingPackageError, match=r"cannot import torch.*make torch.*--python"),
        diffusers.open(config, python=str(python), workdir=workdir),
    ):
        pass


def test_the_error_for_a_missing_environment_names_the_remedy(monkeypatch, tmp_path):
    with pytest.raises(MissingFileError, match="make torch"):
        diffusers.interpreter(str(tmp_path / "none"))
    monkeypatch.setattr(diffusers.diffdepth_jax, "__file__", str(tmp_path / "a" / "b.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"no environment with PyTorch.*make torch"):
        diffusers.interpreter(None)
    (tmp_path / ".venv-torch" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-torch" / "bin" / "python").touch()
    assert diffusers.interpreter(None) == str(tmp_path / ".venv-torch" / "bin" / "python")


def test_prompts_that_are_too_long_are_refused_before_the_first_image(opened, workdir):
    items = make_items(workdir, 3)
    with (
        opened(faults={items[1].key: "the prompt has 90 tokens"}) as session,
        pytest.raises(ConfigError, match="1/night/0: the prompt has 90 tokens"),
    ):
        session.check(items)


def test_negative_prompts_without_guidance_are_refused(opened, config, workdir):
    weak = dataclasses.replace(config, guidance_scale=1.0)
    with opened(weak) as session:
        with pytest.raises(ConfigError, match="disables negative prompts"):
            session.check(make_items(workdir, 1))
        session.check(make_items(workdir, 1, negative_prompt=""))


def test_depth_without_a_control_network_is_refused(opened, config, workdir):
    scenes_only = dataclasses.replace(config, control=None)
    with opened(scenes_only) as session:
        with pytest.raises(ConfigError, match="control is missing"):
            session.check(make_items(workdir, 1))
        scenes = make_items(workdir, 2, image=None, control=None, depth=None)
        session.check(scenes)
        assert not any(outcome.error for outcome in session.generate([scenes]))


def test_identity_covers_everything_that_affects_the_pixels(opened, config, tmp_path):
    def identity(**changes):
        with opened(dataclasses.replace(config, **changes)) as session:
            return json.loads(json.dumps(session.identity()))

    first = identity()
    assert first == identity(timeout=50.0, processes=1)
    assert str(tmp_path) not in json.dumps(first)
    for changes in (
        {"num_inference_steps": 20},
        {"guidance_scale": 3.0},
        {"area": 128 * 128},
        {"threads": 2},
    ):
        assert identity(**changes) != first
    model_folders.write_weights(
        Path(config.control) / "diffusion_pytorch_model.safetensors",
        weight=np.zeros(1, np.float32),
    )
    assert identity() != first


def test_repositories_are_fetched_by_the_worker(opened, config, tmp_path):
    hub = dataclasses.replace(config, base="owner/model")
    with opened(hub, fetched={"base": config.base}) as session:
        assert session.identity()["family"] == "sd"


def test_zoe_adapters_get_depth_between_percentiles(opened, config, tmp_path):
    with opened() as session:
        assert session.identity()["normalization"] == "minimum_maximum"
    folder = model_folders.write_adapter(tmp_path / "t2iadapter_zoedepth_sd15v1")
    with opened(dataclasses.replace(config, control=str(folder))) as session:
        assert session.identity()["normalization"] == "percentiles"


def test_adapters_for_sdxl_need_multiples_of_16(opened, config, tmp_path):
    xl = dataclasses.replace(
        config,
        base=str(model_folders.write_base(tmp_path / "sdxl", "sdxl")),
        control=str(model_folders.write_adapter(tmp_path / "adapter-xl", "sdxl")),
        multiple=8,
    )
    with pytest.raises(ConfigError, match="multiple of 16"), opened(xl):
        pass
    with opened(dataclasses.replace(xl, multiple=16)) as session:
        assert session.identity()["guidance_scale"] == 5.0
        assert session.identity()["area"] == 1024 * 1024


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"pipeline": "controlnet_img2img", "num_inference_steps": 4, "strength": 0.2}, "no step"),
        ({"strength": 0.0}, "strength"),
        ({"multiple": 60}, "multiple of 8"),
        ({"multiple": 0}, "multiple of 8"),
        ({"area": 100}, "area is 100"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"processes": 0}, "processes is 0"),
        ({"timeout": 0.0}, "timeout"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"control_scale": math.inf}, "control_scale"),
        ({"base": " "}, "base is empty"),
        ({"base": None}, "base is missing"),
        ({"scheduler": "ddimm"}, "did you mean 'ddim'"),
        ({"pipeline": "controlnets"}, "did you mean 'controlnet'"),
        ({"clip_skip": 1}, "clip_skip does not exist"),
    ],
)
def test_invalid_values_are_refused_at_once(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        configs.from_mapping(diffusers.Config, {"base": "x", **fields})


@pytest.mark.parametrize(
    "size", [(375, 1242), (370, 1224), (900, 1600), (480, 640), (512, 512), (96, 320), (2000, 100)]
)
@pytest.mark.parametrize("area, multiple", [(512 * 512, 64), (1024 * 1024, 64), (64 * 96, 32)])
def test_generated_sizes_keep_the_aspect_ratio(size, area, multiple):
    height, width = diffusers.generated_size(size, area, multiple)
    assert height % multiple == width % multiple == 0
    assert 0.5 < height * width / area < 2
    if area > 512 and max(size) / min(size) < 4 and multiple == 64:
        assert abs(math.log(height / width * size[1] / size[0])) < 0.08


def test_generated_sizes_of_common_cameras():
    assert diffusers.generated_size((512, 512), 512 * 512, 64) == (512, 512)
    assert diffusers.generated_size((375, 1242), 512 * 512, 64) == (256, 832)
    assert diffusers.generated_size((900, 1600), 512 * 512, 64) == (384, 704)


def test_a_batch_is_split_where_items_differ(opened, workdir):
    items = [
        *make_items(workdir, 2),
        *make_items(workdir, 1, key="a", size=(30, 20)),
        *make_items(workdir, 1, key="b", negative_prompt=""),
        *make_items(workdir, 1, key="c", image=None, control=None),
    ]
    with opened() as session:
        parts = [[item.key for item in task.items] for task in session._tasks(items)]
    assert parts == [["0/night/0", "1/night/0"], ["a"], ["b"], ["c"]]
