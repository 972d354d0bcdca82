"""Generates images with diffusers' pipelines, in separate processes with PyTorch.

Pipelines: a depth T2I-Adapter or ControlNet on Stable Diffusion 1.x, 2.x or XL, starting from
noise; or a ControlNet that starts from the clean image (`controlnet_img2img`), which preserves more
of the content. Scenes, items without a clean image, only use the base model.

Models are diffusers folders, single files from the original code, or repositories on the Hugging
Face Hub; `adverse/model_files.py` inspects them. `adverse/worker.py` generates the images.

Settings follow "Diffusion Models for Monocular Depth Estimation: Overcoming Challenging Conditions"
(Tosi et al., 2024): the control image is inverse depth minus its minimum, divided by the maximum,
in 8 bits; about 512x512 pixels (SDXL: 1024x1024) with the clean image's aspect ratio and sides in
multiples of 64; 50 DDIM steps; the generated image is resized to the clean image's size by Lanczos.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import diffdepth_jax
from diffdepth_jax import atomic
from diffdepth_jax.adverse import model_files, processes
from diffdepth_jax.adverse.backends import Item, Outcome
from diffdepth_jax.data.listing import known
from diffdepth_jax.errors import ConfigError, MissingFileError, naming_file

CONDITIONS = None  # any condition with prompts
USES_PROMPTS = True
WORKER = Path(__file__).parents[1] / "worker.py"

_GUIDANCE = {"sd": 7.5, "sdxl": 5.0}
_AREA = {"sd": 512 * 512, "sdxl": 1024 * 1024}
_CHECKED = 1000  # prompts per request
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclasses.dataclass(frozen=True)
class Config:
    """How images are generated.

    Attributes:
        pipeline: see above.
        base: the Stable Diffusion model: a folder, a file, or owner/name on the Hub.
        control: the depth T2I-Adapter or ControlNet, given like `base`; None if only scenes are
            generated.
        base_config: if `base` is a single file, a diffusers folder (or Hub repository) of the same
            family, for configs and tokenizers; its weights are not needed.
        scheduler: `saved` is the base model's own.
        num_inference_steps: denoising steps.
        guidance_scale: None for 7.5, or 5.0 for SDXL; 1 disables guidance.
        control_scale: weight of the adapter or ControlNet; None for 1.0, or 0.8 with img2img.
        strength: for img2img, the fraction of steps to run; lower values keep more of the image.
        area: approximate number of pixels of the generated image; None for 512x512, or 1024x1024
            for SDXL.
        multiple: sides of the generated image are multiples of this, itself a multiple of 8, or 16
            for SDXL adapters.
        normalization: scaling of the control image: `minimum_maximum`, `percentiles` (adapters for
            ZoeDepth), or `auto`: percentiles if the control's name contains "zoe".
        safety_checker: use the base model's safety checker, if it has one; images that it blacks
            out are rejected.
        batch_size: images that go through the pipeline together.
        device: `auto` uses the GPU if there is one.
        dtype: `auto` is float16 on NVIDIA GPUs, otherwise float32.
        processes: None for one per GPU, or one without GPUs.
        threads: CPU threads per process; None for an equal share of the cores. Changing it changes
            the last bits of images.
        timeout: seconds without progress (one step of a batch) after which a process is killed and
            restarted.
    """

    name: Literal["diffusers"] = "diffusers"
    base: str | None = None
    pipeline: Literal["t2i_adapter", "controlnet", "controlnet_img2img"] = "t2i_adapter"
    control: str | None = None
    base_config: str | None = None
    scheduler: Literal["ddim", "euler_ancestral", "dpm_solver", "lcm", "saved"] = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    control_scale: float | None = None
    strength: float = 0.8
    area: int | None = None
    multiple: int = 64
    normalization: Literal["auto", "minimum_maximum", "percentiles"] = "auto"
    safety_checker: bool = True
    batch_size: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    processes: int | None = None
    threads: int | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.base is None:
            raise ValueError(
                "base is missing: set it to a Stable Diffusion model, as a diffusers folder, a "
                "single file, or a repository on the Hugging Face Hub"
            )
        for field in ("num_inference_steps", "batch_size", "processes", "threads", "area"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} is {value}; it must be at least 1")
        for field in ("base", "control", "base_config"):
            if (value := getattr(self, field)) is not None and not value.strip():
                raise ValueError(f"{field} is empty: set it to a folder, a file or a repository")
        if self.multiple < 8 or self.multiple % 8:
            # Other sizes are rounded down silently or fail with an obscure error.
            raise ValueError(f"multiple is {self.multiple}; it must be a multiple of 8")
        if self.area is not None and self.area < self.multiple**2:
            raise ValueError(
                f"area is {self.area}; it must be at least multiple^2 = {self.multiple**2}"
            )
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; it must be above 0 and at most 1")
        if self.pipeline == "controlnet_img2img" and self.num_inference_steps * self.strength < 1:
            raise ValueError(
                f"num_inference_steps ({self.num_inference_steps}) times strength "
                f"({self.strength}) is below 1, so no step would run: increase one of them"
            )
        if self.control_scale is not None and not 0 <= self.control_scale < math.inf:
            raise ValueError(f"control_scale is {self.control_scale}; it must be finite, 0 or more")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}; it must be finite, 0 or more"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; it must be a positive number of seconds")


def title(config: Config, condition: str) -> str:
    """The name of its images in manifests and tables."""
    return f"diffusers-{'text_to_image' if condition == 'scene' else config.pipeline}"


@contextlib.contextmanager
def open(config: Config, *, python: str | None, workdir: Path) -> Iterator["Session"]:
    """Inspects the models, starts the processes and loads the pipeline.

    Args:
        config: what to load.
        python: an interpreter with PyTorch and diffusers; None for the one from `make torch`.
        workdir: logs of the processes go to its folder `logs`.

    Raises:
        ConfigError: if the interpreter, a model or an option is unusable.
        FileError, WeightsError: if something is missing or damaged.
        MissingPackageError: if the interpreter lacks a package.
    """
    command = (interpreter(python), str(WORKER))
    logs = workdir / "logs"
    with naming_file(logs, "written"):
        logs.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        # Contains links, and converted weights as large as the originals.
        folder = Path(stack.enter_context(_temporary_folder()))
        paths = _paths(config, command, logs)
        base = model_files.prepare_base(
            known(config.base),
            paths["base"],
            paths.get("base_config"),
            folder,
            safety_checker=config.safety_checker,
        )
        control = None
        if config.control is not None:
            control = model_files.prepare_control(
                config.control, paths["control"], config.pipeline, base, folder
            )
        options = _options(config, base, control)
        threads = config.threads or max(1, _cores() // (config.processes or 1))

        def start(index: int) -> processes.Process:
            process = processes.Process(
                command,
                _log(logs, index),
                _ENVIRONMENT | _OFFLINE,
                config.timeout,
            )
            try:
                process.send(
                    protocol=processes.PROTOCOL,
                    open=options | {"index": index, "threads": threads},
                )
                process.handshake = _handshake(process.receive())
            except BaseException:
                process.kill()
                raise
            return process

        first = processes.started(lambda: start(0), command[0])
        count = config.processes or (
            first.handshake["devices"] if first.handshake["device"] == "cuda" else 1
        )
        pool = processes.Pool(start, first, count)
        stack.callback(pool.kill)
        yield Session(config, options, base, control, first.handshake, pool)
        pool.close()


class Session:
    """Loaded pipelines; see `backends.Session`."""

    def __init__(
        self,
        config: Config,
        options: Mapping[str, Any],
        base: model_files.Base,
        control: model_files.Control | None,
        handshake: Mapping[str, Any],
        pool: processes.Pool,
    ):
        self._config, self._options, self._pool = config, options, pool
        self._base, self._control, self._handshake = base, control, handshake
        self._area = config.area or _AREA[base.family]

    def identity(self) -> Mapping[str, Any]:
        """Fingerprints of weights, options and versions, and the threads if they affect results."""
        paths = ("base", "control")
        options = {name: value for name, value in self._options.items() if name not in paths}
        place = {name: self._handshake[name] for name in ("device", "dtype", "versions")}
        if place["device"] == "cpu":
            place["threads"] = self._handshake["threads"]
        return {
            **options,
            **place,
            "base": self._base.fingerprint,
            "control": None if self._control is None else self._control.fingerprint,
            "safety_checker": self._base.safety_checker,
            "area": self._area,
            "multiple": self._config.multiple,
            "batch_size": self._config.batch_size,
        }

    def check(self, items: Sequence[Item]) -> None:
        """Rejects items that the pipeline would not process as specified.

        Raises:
            ConfigError: if a prompt is too long, or something that the pipeline needs is missing.
        """
        for item in items:
            if item.control is not None and self._control is None:
                raise ConfigError(
                    "control is missing: set it to a depth T2I-Adapter or ControlNet, which "
                    f"{item.key} needs"
                )
            if item.control is not None and item.image is None:
                raise ConfigError(f"{item.key} has depth but no clean image")
            if item.negative_prompt and self._options["guidance_scale"] <= 1:
                raise ConfigError(
                    f"guidance_scale is {self._options['guidance_scale']:g}, which disables "
                    f"negative prompts, but {item.key} has one: set guidance_scale above 1, or "
                    "leave the prompt bank's negative prompts empty"
                )
        prompts: dict[str, str] = {}  # prompt -> the first item that has it
        for item in items:
            for prompt in (item.prompt, item.negative_prompt):
                prompts.setdefault(prompt, item.key)
        asked = [{"key": key, "prompts": [prompt]} for prompt, key in prompts.items()]
        for start in range(0, len(asked), _CHECKED):
            reply = self._pool.ask(check=asked[start : start + _CHECKED])
            for key, fault in reply.get("checked", {}).items():
                raise ConfigError(f"{key}: {fault}")

    def generate(self, batches: Sequence[Sequence[Item]]) -> Iterator[Outcome]:
        """Generates the images; see `backends.Session`."""
        return self._pool.run(task for batch in batches for task in self._tasks(batch))

    def _tasks(self, batch: Sequence[Item]) -> list[processes.Task]:
        """Splits a batch by size, by presence of a control, and by presence of negative prompts.

        This only depends on the items, so the parts are the same in every run.
        """
        parts: dict[Any, list[Item]] = {}
        for item in batch:
            kind = item.size, item.control is None, bool(item.negative_prompt)
            parts.setdefault(kind, []).append(item)
        return [
            processes.Task(tuple(part), tuple(self._message(item) for item in part))
            for part in parts.values()
        ]

    def _message(self, item: Item) -> dict[str, Any]:
        """An item in the form sent to the worker."""
        return {
            "key": item.key,
            "seed": item.seed,
            "prompt": item.prompt,
            "negative_prompt": item.negative_prompt,
            "image": None if item.image is None else str(item.image),
            "control": None if item.control is None else str(item.control),
            "output": str(item.output),
            "temporary": str(atomic.temporary_path(item.output)),
            "size": list(item.size),
            "generated": list(generated_size(item.size, self._area, self._config.multiple)),
        }


def generated_size(size: tuple[int, int], area: int, multiple: int) -> tuple[int, int]:
    """The (height, width) to generate for an image of `size`.

    Of the multiples with 3/4 to 5/4 of `area`, those closest to the aspect ratio; if there are
    none, those closest to the area.
    """
    height, width = size
    aspect = height / width
    candidates = []
    for rows in range(1, math.ceil(1.25 * area / multiple**2) + 1):
        ideal = rows / aspect
        for columns in {max(1, math.floor(ideal)), math.ceil(ideal)}:
            pixels = rows * columns * multiple**2
            skew = abs(math.log(rows / columns / aspect))
            excess = abs(math.log(pixels / area))
            fits = 0.75 <= pixels / area <= 1.25
            order = (0, skew, excess) if fits else (1, excess, skew)
            candidates.append((order, rows * multiple, columns * multiple))
    return min(candidates)[1:]


def interpreter(python: str | None) -> str:
    """The interpreter that runs PyTorch.

    Raises:
        MissingFileError: if there is none.
    """
    remedy = (
        "run `make torch`, or set an interpreter with the packages of requirements-torch.txt with "
        "--python=INTERPRETER"
    )
    if python is not None:
        found = shutil.which(os.path.expanduser(python))
        if found is None:
            raise MissingFileError(f"--python={python} is not a program: {remedy}")
        return found
    project = Path(diffdepth_jax.__file__).resolve().parents[1]
    tried = [folder / ".venv-torch" / "bin" / "python" for folder in (project, Path.cwd())]
    for path in tried:
        if path.is_file():
            return str(path)
    raise MissingFileError(f"there is no environment with PyTorch ({tried[0]}): {remedy}")


def _options(
    config: Config, base: model_files.Base, control: model_files.Control | None
) -> dict[str, Any]:
    """The content of the request "open"."""
    normalization = config.normalization
    if normalization == "auto":
        names = [] if control is None else [control.name, control.config.get("_name_or_path", "")]
        zoe = any("zoe" in Path(str(name)).name.lower() for name in names)
        normalization = "percentiles" if zoe else "minimum_maximum"
    if config.pipeline == "t2i_adapter" and control is not None:
        factor = control.config.get("downscale_factor", 8)
        if config.multiple % factor:
            raise ConfigError(
                f"multiple is {config.multiple}; the adapter {control.name!r} needs a multiple of "
                f"{factor}"
            )
    guidance, scale = config.guidance_scale, config.control_scale
    if scale is None:
        scale = 0.8 if config.pipeline == "controlnet_img2img" else 1.0
    return {
        "family": base.family,
        "pipeline": config.pipeline,
        "base": {
            "folder": str(base.folder),
            "file": None if base.file is None else str(base.file),
            "safety_checker": base.safety_checker,
        },
        "control": None
        if control is None
        else {
            "folder": None if control.folder is None else str(control.folder),
            "file": None if control.file is None else str(control.file),
        },
        "scheduler": config.scheduler,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": _GUIDANCE[base.family] if guidance is None else guidance,
        "control_scale": scale,
        "strength": config.strength,
        "normalization": normalization,
        "device": config.device,
        "dtype": config.dtype,
    }


def _paths(config: Config, command: Sequence[str], logs: Path) -> dict[str, Path]:
    """Paths of the models; the worker downloads repositories from the Hub."""
    fields = {"base": config.base, "control": config.control, "base_config": config.base_config}
    given = {field: name for field, name in fields.items() if name is not None}
    wanted: dict[str, dict[str, Any]] = {
        field: {"repository": name, "kind": "config" if field == "base_config" else field}
        for field, name in given.items()
        if model_files.is_repository(name)
    }
    if "base" in wanted and not config.safety_checker:  # a gigabyte
        wanted["base"]["without"] = ["safety_checker/*"]
    paths = {
        field: model_files.find(field, name) for field, name in given.items() if field not in wanted
    }
    if wanted:
        process = processes.Process(command, _log(logs, 0), _ENVIRONMENT, config.timeout)
        try:
            process.send(fetch=wanted)
            fetched = process.receive()["fetched"]
        except processes.WorkerFailure as failure:
            raise processes.unusable(command[0], failure) from failure
        finally:
            process.close()
        paths |= {field: Path(folder) for field, folder in fetched.items()}
    return paths


def _log(folder: Path, index: int) -> Path:
    """Log file for a worker's standard error; several runs can share a workdir."""
    return folder / f"worker-{os.getpid()}-{index}.log"


def _handshake(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    wanted = {"protocol": int, "versions": dict, "device": str, "devices": int, "dtype": str}
    for field, kind in wanted.items():
        if not isinstance(reply.get(field), kind):
            raise processes.WorkerFailure(f"sent no {field} in its first reply")
    if reply["protocol"] != processes.PROTOCOL:
        raise processes.WorkerFailure(
            f"uses protocol {reply['protocol']}, not {processes.PROTOCOL}"
        )
    return reply


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    with naming_file(tempfile.gettempdir(), "written"):
        folder = tempfile.TemporaryDirectory(prefix="diffdepth-models-", ignore_cleanup_errors=True)
    with folder as name:
        yield name


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
