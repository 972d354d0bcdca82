"""The worker with the real pipelines of diffusers, on tiny models with random weights."""

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.adverse import model_files, worker
from diffdepth_jax.adverse.backends import Item, diffusers
from diffdepth_jax.errors import ConfigError, WeightsError

torch = pytest.importorskip("torch")
hub = pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from tests.adverse import original_files, test_kill, tiny_models  # noqa: E402 (they need torch)

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

SIZE = (60, 91)  # of the clean image
FAMILIES = ["sd", "sdxl"]
PIPELINES = ["t2i_adapter", "controlnet", "controlnet_img2img"]
CLASSES = {
    ("t2i_adapter", "sd"): "StableDiffusionAdapterPipeline",
    ("t2i_adapter", "sdxl"): "StableDiffusionXLAdapterPipeline",
    ("controlnet", "sd"): "StableDiffusionControlNetPipeline",
    ("controlnet", "sdxl"): "StableDiffusionXLControlNetPipeline",
    ("controlnet_img2img", "sd"): "StableDiffusionControlNetImg2ImgPipeline",
    ("controlnet_img2img", "sdxl"): "StableDiffusionXLControlNetImg2ImgPipeline",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: FAMILY, t2i_adapter-FAMILY and controlnet-FAMILY."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny_models.write_base(folder / family, family)
        tiny_models.write_adapter(folder / f"t2i_adapter-{family}", family)
        tiny_models.write_controlnet(folder / f"controlnet-{family}", folder / family)
    return folder


def make_config(models, pipeline="t2i_adapter", family="sd", **changes):
    kind = pipeline.removesuffix("_img2img")
    return diffusers.Config(
        **{
            "pipeline": pipeline,
            "base": str(models / family),
            "control": str(models / f"{kind}-{family}"),
            "num_inference_steps": 3,
            "area": 64 * 96,
            "multiple": 32,
            "threads": 1,
            **changes,
        }
    )


class Worker:
    """The worker's generator in this process, with the options that the host would send."""

    def __init__(self, config, folder):
        configs = None if config.base_config is None else Path(config.base_config)
        base = model_files.prepare_base(
            config.base, Path(config.base), configs, folder, safety_checker=config.safety_checker
        )
        control = None
        if config.control is not None:
            control = model_files.prepare_control(
                config.control, Path(config.control), config.pipeline, base, folder
            )
        options = diffusers._options(config, base, control) | {"index": 0, "threads": 1}
        self.replies = []
        self.generator = worker.Generator(options, lambda **reply: self.replies.append(reply))
        self._session = diffusers.Session(config, options, base, control, {}, None)

    def make(self, items, **batch):
        """Replies by key."""
        del self.replies[:]
        for task in self._session._tasks(items):
            self.generator.batch([dict(each) for each in task.messages], **batch)
        return {reply["key"]: reply for reply in self.replies if "key" in reply}


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "work"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    picture.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(folder / "clean.png")
    depth = Image.fromarray(rng.uniform(1, 40, (6, 9)).astype(np.float32))
    depth = np.asarray(depth.resize(SIZE[::-1], Image.Resampling.BILINEAR))
    np.save(folder / "control.npy", 1 / depth)
    np.save(folder / "other.npy", depth / 40)
    return folder


def make_items(workdir, count=2, **changes):
    return [
        Item(
            **{
                "key": f"{index}/night/0",
                "condition": "night",
                "seed": 2**62 + index,
                "prompt": f"a street at night, {index}",
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


def read(item):
    with Image.open(item.output) as image:
        return np.asarray(image)


def read_all(items):
    return np.stack([read(item) for item in items])


def assert_same_pixels(one, other):
    """Equal up to the rounding of a few values, as processors differ."""
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def by_diffusers_alone(config, items):
    """The images of a batch as a user of diffusers would make them."""
    family = "sdxl" if config.base.endswith("sdxl") else "sd"
    adapter = config.pipeline == "t2i_adapter"
    cls = hub.T2IAdapter if adapter else hub.ControlNetModel
    network = {"adapter" if adapter else "controlnet": cls.from_pretrained(config.control)}
    pipeline = getattr(hub, CLASSES[config.pipeline, family]).from_pretrained(
        config.base, **network, **({"safety_checker": None} if family == "sd" else {})
    )
    pipeline.scheduler = hub.DDIMScheduler.from_config(pipeline.scheduler.config)
    values = np.load(items[0].control).astype(np.float64)
    values -= values.min()
    values /= values.max()
    levels = np.stack([(255 * values).round().astype(np.uint8)] * 3, axis=-1)
    lanczos = Image.Resampling.LANCZOS
    control = [Image.fromarray(levels).resize((96, 64), lanczos)] * len(items)
    images = {"image": control}
    if config.pipeline == "controlnet_img2img":
        clean = [Image.open(item.image).convert("RGB").resize((96, 64), lanczos) for item in items]
        images = {"image": clean, "control_image": control, "strength": 0.8}
    scale = "adapter_conditioning_scale" if adapter else "controlnet_conditioning_scale"
    output = pipeline(
        prompt=[item.prompt for item in items],
        negative_prompt=[item.negative_prompt for item in items],
        generator=[torch.Generator("cpu").manual_seed(item.seed) for item in items],
        num_inference_steps=3,
        guidance_scale=5.0 if family == "sdxl" else 7.5,
        height=64,
        width=96,
        **images,
        **{scale: 0.8 if config.pipeline == "controlnet_img2img" else 1.0},
    )
    return np.stack([np.asarray(image.resize(SIZE[::-1], lanczos)) for image in output.images])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_images_equal_those_of_diffusers(models, workdir, tmp_path, pipeline, family):
    config = make_config(models, pipeline, family)
    items = make_items(workdir)
    made = Worker(config, tmp_path / "into")

    assert all(reply["ok"] for reply in made.make(items).values())

    assert made.replies.count({"progress": True}) >= 3 - (pipeline == "controlnet_img2img")
    images = read_all(items)
    assert_same_pixels(images, by_diffusers_alone(config, items))
    assert images.std() > 1
    # All of these matter; a silently dropped argument would not.
    changes = [{"control": workdir / "other.npy"}, {"prompt": "fog"}, {"seed": 1}]
    if pipeline == "controlnet_img2img":
        Image.new("RGB", SIZE[::-1], "green").save(workdir / "green.png")
        changes.append({"image": workdir / "green.png"})
    else:
        changes.append({"image": None, "control": None})  # a scene
    for change in changes:
        made.make(make_items(workdir, 1, **change))
        assert np.abs(read(items[0]) - images[0].astype(int)).max() > 3, change
    # Nothing carries over from one batch to the next.
    made.make(items)
    np.testing.assert_array_equal(read_all(items), images)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pipeline", ["t2i_adapter", "controlnet"])
def test_single_files_of_the_original_code_give_the_same_images(
    models, workdir, tmp_path, pipeline, family
):
    """As safetensors, and as pickles, which are read without running them."""
    config = make_config(models, pipeline, family)
    items = make_items(workdir)
    Worker(config, tmp_path / "folders").make(items)
    expected = read_all(items)

    base = original_files.base(models / family, family)
    torch.save({"state_dict": base, "global_step": 7}, tmp_path / "base.ckpt")
    changes = {"base": str(tmp_path / "base.ckpt"), "base_config": str(models / family)}
    control = models / f"{pipeline}-{family}"
    if pipeline == "t2i_adapter":
        torch.save(original_files.adapter(control), tmp_path / "control.pth")
        changes["control"] = str(tmp_path / "control.pth")
    elif family == "sd":
        torch.save(original_files.controlnet(control), tmp_path / "control.pth")
        changes["control"] = str(tmp_path / "control.pth")
    else:  # nobody has published an original one
        weights = original_files.read(control)
        original_files.safetensors.torch.save_file(weights, tmp_path / "control.safetensors")
        changes["control"] = str(tmp_path / "control.safetensors")
    for item in items:
        item.output.unlink()

    Worker(dataclasses.replace(config, **changes), tmp_path / "files").make(items)

    assert_same_pixels(read_all(items), expected)


def test_pickles_in_a_folder_are_passed_on_as_safetensors(models, workdir, tmp_path):
    config = make_config(models)
    items = make_items(workdir)
    Worker(config, tmp_path / "one").make(items)
    expected = read_all(items)
    folder = copied(models / "sd", tmp_path / "sd")
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        (path,) = (folder / part).glob("*.safetensors")
        torch.save(original_files.read(folder / part), path.with_name(f"{name}.bin"))
        path.unlink()
    Worker(dataclasses.replace(config, base=str(folder)), tmp_path / "two").make(items)
    assert_same_pixels(read_all(items), expected)


def copied(folder, to):
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


@pytest.fixture
def made(models, tmp_path):
    return Worker(make_config(models), tmp_path / "into")


def test_a_batch_is_halved_when_memory_runs_out(made, workdir, monkeypatch):
    items = make_items(workdir, 5)
    made.make(items)
    expected = read_all(items)
    pipeline, tried = made.generator._controlled, []
    freed = []
    monkeypatch.setattr(made.generator, "_free", lambda: freed.append(True))

    def limited(**arguments):
        count = len(arguments["prompt"])
        tried.append(count)
        if count > 2:
            if count > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return pipeline(**arguments)

    monkeypatch.setattr(made.generator, "_controlled", limited)
    replies = made.make(items)
    assert tried == [5, 3, 2, 1, 2]
    assert len(freed) == 2
    assert [reply["reduced_batch"] for reply in replies.values()] == [2, 2, 1, 2, 2]
    difference = np.abs(read_all(items).astype(int) - expected.astype(int))
    assert difference.max() <= 1

    def none(**arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made.generator, "_controlled", none)
    replies = made.make(items)
    assert all("reduce area" in reply["error"] for reply in replies.values())


def test_the_host_can_ask_for_one_image_at_a_time(made, workdir):
    replies = made.make(make_items(workdir, 3), at_most=1)
    assert [reply["reduced_batch"] for reply in replies.values()] == [1, 1, 1]


def test_failures_of_an_item_and_of_a_batch_are_replies(made, workdir, monkeypatch):
    items = make_items(workdir, 3)
    bad = dataclasses.replace(items[1], control=workdir / "none.npy")
    replies = made.make([items[0], bad, items[2]])
    assert [("ok" in replies[item.key]) for item in items] == [True, False, True]
    assert "none.npy cannot be read" in replies[bad.key]["error"]

    def broken(**_):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(made.generator, "_controlled", broken)
    replies = made.make(items)
    assert {reply["error"] for reply in replies.values()} == {"ValueError: shapes do not match"}


def test_overflow_is_an_error_and_not_an_image(made, workdir):
    """Half precision gives NaN, which would silently become a black 8-bit image."""
    with torch.no_grad():
        made.generator._controlled.vae.decoder.conv_out.weight.fill_(torch.nan)
    items = make_items(workdir)
    replies = made.make(items)
    assert all("set dtype to 'bfloat16'" in reply["error"] for reply in replies.values())
    assert not items[0].output.exists()


def test_a_full_disk_is_fatal(made, workdir):
    items = make_items(workdir, 1)
    atomic.temporary_path(items[0].output).symlink_to("/dev/full")
    (reply,) = made.make(items).values()
    assert reply["fatal"] and "No space left" in reply["error"]
    assert list((workdir / "images").iterdir()) == []


def test_flagged_images_are_black_and_marked(models, workdir, tmp_path):
    tiny_models.write_base(tmp_path / "checked", "sd", safety_checker=True)
    config = make_config(models, base=str(tmp_path / "checked"))
    items = make_items(workdir)
    replies = Worker(config, tmp_path / "into").make(items)
    assert all(reply["flagged"] and reply["ok"] for reply in replies.values())
    assert not read_all(items).any()
    without = dataclasses.replace(config, safety_checker=False)
    replies = Worker(without, tmp_path / "without").make(items)
    assert not any(reply.get("flagged") for reply in replies.values())
    assert read_all(items).any()


def test_prompts_are_checked_by_the_models_own_tokenizers(made):
    # The tiny tokenizer has one token per letter, and two for start and end.
    fits, too_long = "n" * 75, "n" * 76
    faults = made.generator.check(
        [{"key": "a", "prompts": [fits]}, {"key": "b", "prompts": ["", too_long]}]
    )
    assert faults.keys() == {"b"}
    assert "78 tokens, but the text encoder only reads 77" in faults["b"]


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "dpm_solver", "lcm", "saved"])
def test_schedulers_keep_what_the_model_was_trained_with(models, workdir, tmp_path, scheduler):
    made = Worker(make_config(models, scheduler=scheduler), tmp_path / "into")
    config = made.generator._controlled.scheduler.config
    assert config.beta_schedule == "scaled_linear" and config.beta_end == 0.012
    items = make_items(workdir, 1)
    assert made.make(items)[items[0].key]["ok"]


def test_bfloat16_is_close_to_float32(models, workdir, tmp_path, made):
    items = make_items(workdir)
    made.make(items)
    expected = read_all(items).astype(float)
    Worker(make_config(models, dtype="bfloat16"), tmp_path / "half").make(items)
    difference = np.abs(read_all(items) - expected).mean()
    assert 0 < difference < 0.25 * expected.std()


def test_options_that_model_or_machine_do_not_support_are_refused(models, tmp_path):
    for changes, complaint in (
        ({"dtype": "float16", "device": "cpu"}, "which CPUs do not support"),
        ({"num_inference_steps": 1001}, "but the model has 1000"),
        *([({"device": "cuda"}, "finds none")] if not torch.cuda.is_available() else []),
    ):
        with pytest.raises(worker.RequestError, match=complaint) as raised:
            Worker(make_config(models, **changes), tmp_path / str(len(complaint)))
        assert raised.value.kind == "config"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "control"])
def test_missing_weights_and_wrong_shapes_are_refused(models, tmp_path, part):
    """diffusers and transformers would carry on with random weights."""
    folder = copied(models / "sd", tmp_path / "sd")
    control = copied(models / "t2i_adapter-sd", tmp_path / "control")
    config = make_config(models, base=str(folder), control=str(control))
    (path,) = (control if part == "control" else folder / part).glob("*.safetensors")
    weights = original_files.read(path.parent)
    name = next(name for name in weights if name.endswith("weight") and weights[name].ndim > 1)
    save = original_files.safetensors.torch.save_file
    metadata = {"format": "pt"}

    save({key: each for key, each in weights.items() if key != name}, path, metadata)
    with pytest.raises(worker.RequestError, match="1 weights are missing") as raised:
        Worker(config, tmp_path / "one")
    assert raised.value.kind == "weights"
    save(weights | {name: weights[name][:-1].clone()}, path, metadata)
    with pytest.raises(worker.RequestError, match=str(path.parent.name)) as raised:
        Worker(config, tmp_path / "two")
    assert raised.value.kind == "weights"


@pytest.mark.parametrize("prefix", ["model.diffusion", "first_stage", "cond_stage", "control"])
def test_single_files_that_lack_weights_are_refused(models, tmp_path, prefix):
    base = original_files.base(models / "sd", "sd")
    control = original_files.controlnet(models / "controlnet-sd")
    for weights in (base, control):
        names = [name for name in weights if name.startswith(prefix) and "bias" in name]
        for name in names[-1:]:
            del weights[name]
    save = original_files.safetensors.torch.save_file
    save(base, tmp_path / "base.safetensors")
    save(control, tmp_path / "control.safetensors")
    config = make_config(
        models,
        "controlnet",
        base=str(tmp_path / "base.safetensors"),
        base_config=str(models / "sd"),
        control=str(tmp_path / "control.safetensors"),
    )
    with pytest.raises(worker.RequestError, match=r"missing|cannot be loaded") as raised:
        Worker(config, tmp_path / "into")
    assert raised.value.kind == "weights"


def test_three_kills_of_runner_and_worker_lose_no_image(models, mapping, tmp_path):
    """The whole run gives the same manifest and images as without kills."""
    base = str(tiny_models.write_base(tmp_path / "base", "sd", tokens=400))
    config = make_config(models, base=base, num_inference_steps=25, batch_size=2)
    settings = mapping(backend=dataclasses.asdict(config))
    test_kill.generate(settings, tmp_path / "whole", sys.executable)
    expected = test_kill.contents(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("images/")]) == 10

    context = multiprocessing.get_context("forkserver")
    killed = tmp_path / "killed"
    victims = ["runner", "worker", "runner"]
    made = lambda: len(list((killed / "images").rglob("[!.]*.png")))  # noqa: E731
    while victims:
        run = context.Process(target=test_kill.generate, args=(settings, killed, sys.executable))
        run.start()
        victim = ""
        while victims and victim != "runner":
            wanted = 8 - 2 * len(victims)
            while made() < wanted:
                assert run.exitcode is None
                time.sleep(0.01)
            victim = victims.pop(0)
            pid = run.pid if victim == "runner" else test_kill.children(run.pid)[0]
            os.kill(pid, signal.SIGKILL)
        run.join()
        assert run.exitcode == -signal.SIGKILL
    assert made() < 10
    test_kill.generate(settings, killed, sys.executable)

    contents = test_kill.contents(killed)
    assert contents.keys() == expected.keys()
    pictures = {name for name in expected if name.endswith(".png")}
    for name in contents:
        if name not in pictures:
            assert contents[name] == expected[name], name
    for name in pictures - {"contact_sheet.png"}:
        one, other = (
            np.asarray(Image.open(io.BytesIO(each[name]))) for each in (contents, expected)
        )
        assert_same_pixels(one, other)


def test_hub_repositories_are_found_in_the_cache(models, workdir, tmp_path, monkeypatch):
    """Laid out as the hub's client does; nothing is downloaded."""
    for name, source in (("base", "sd"), ("adapter", "t2i_adapter-sd")):
        repository = tmp_path / "cache" / f"models--owner--{name}"
        copied(models / source, repository / "snapshots" / "0123")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = make_config(models, base="owner/base", control="owner/adapter")
    items = make_items(workdir)
    with diffusers.open(config, python=sys.executable, workdir=workdir) as session:
        long = make_items(workdir, 1, prompt="n" * 90)
        with pytest.raises(ConfigError, match="0/night/0: the prompt has 92 tokens"):
            session.check(long)
        assert not any(outcome.error for outcome in session.generate([items]))
        assert json.loads(json.dumps(session.identity()))["threads"] == 1
    lost = dataclasses.replace(config, base="owner/none")
    with (
        pytest.raises(WeightsError, match=r"no file or folder 'owner/none'.*use its folder"),
        diffusers.open(lost, python=sys.executable, workdir=workdir),
    ):
        pass
