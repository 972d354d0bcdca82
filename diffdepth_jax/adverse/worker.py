"""The process that runs PyTorch, and the only file that imports it: `INTERPRETER worker.py`.

It imports neither JAX nor this package, so any interpreter with PyTorch and diffusers works. It
reads requests from standard input and writes replies to the original standard output, one JSON
object per line; output of libraries goes to standard error. The requests:

    {"fetch": {NAME: {"repository", "kind"}}}  downloads     {"fetched": {NAME: FOLDER}}
    {"protocol": 1, "open": {...}}             loads         {"protocol", "versions", "device", ...}
    {"check": [{"key", "prompts"}]}            counts tokens {"checked": {KEY: FAULT}}
    {"batch": [ITEM], "at_most": N}            makes images  {"key", "ok" or "error"} for each item
    {"close": true}                            ends the process

`{"progress": ...}` is sent in between as a heartbeat. The reply to a request that cannot be served
is {"error", "kind"}. When standard input ends, the process exits immediately, as nothing is left to
receive its images.
"""

from __future__ import annotations  # for Python 3.9

import contextlib
import fnmatch
import functools
import gc
import json
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import IO, Literal, NotRequired, Protocol, TypedDict

    import numpy as np
    from PIL import Image

    # The requests in JSON; `backends/diffusers.py` writes and explains them.

    class _Request(TypedDict, total=False):
        fetch: dict[str, _Wanted]
        protocol: int
        open: _Options
        check: list[_Asked]
        batch: list[_Item]
        at_most: int | None
        close: bool

    class _Wanted(TypedDict):
        repository: str
        kind: Literal["base", "control", "config"]
        without: NotRequired[list[str]]

    class _Base(TypedDict):
        folder: str
        file: str | None
        safety_checker: bool

    class _Folder(TypedDict):
        folder: str
        file: None

    class _File(TypedDict):
        folder: None
        file: str

    class _Options(TypedDict):
        family: str
        pipeline: str
        base: _Base
        control: _Folder | _File | None
        scheduler: str
        num_inference_steps: int
        guidance_scale: float
        control_scale: float
        strength: float
        normalization: str
        device: str
        dtype: str
        index: int
        threads: int

    class _Asked(TypedDict):
        key: str
        prompts: list[str]

    class _Item(TypedDict):
        key: str
        seed: int
        prompt: str
        negative_prompt: str
        image: str | None
        control: str | None
        output: str
        temporary: str
        size: list[int]
        generated: list[int]

    class _Send(Protocol):
        def __call__(self, **reply: object) -> None: ...

    _Path = str | os.PathLike[str]
    _Ready = tuple[_Item, dict[str, Any]]  # an item and the pipeline's arguments for it

PROTOCOL = 1
REMEDY = (
    "run `make torch`, or use --python to select an interpreter with the packages of "
    "requirements-torch.txt"
)
# Older versions silently ignore `dtype=` in from_pretrained.
_MINIMA = {"torch": (2, 4), "diffusers": (0, 42), "transformers": (4, 56)}
_SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
_PIPELINES = {
    ("t2i_adapter", "sd"): "StableDiffusionAdapterPipeline",
    ("t2i_adapter", "sdxl"): "StableDiffusionXLAdapterPipeline",
    ("controlnet", "sd"): "StableDiffusionControlNetPipeline",
    ("controlnet", "sdxl"): "StableDiffusionXLControlNetPipeline",
    ("controlnet_img2img", "sd"): "StableDiffusionControlNetImg2ImgPipeline",
    ("controlnet_img2img", "sdxl"): "StableDiffusionXLControlNetImg2ImgPipeline",
    ("text_to_image", "sd"): "StableDiffusionPipeline",
    ("text_to_image", "sdxl"): "StableDiffusionXLPipeline",
}
_PROGRESS = 10.0  # seconds between heartbeats during downloads


class RequestError(Exception):
    """A request that cannot be served: "package", "weights" or "config"."""

    def __init__(self, kind: Literal["package", "weights", "config"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ItemError(Exception):
    """Why an item has no image."""


def main() -> int:
    # Library output between replies would break the protocol.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # This file's folder has modules with common names, such as `config`.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]

    def send(**reply: object) -> None:
        try:
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
        except OSError:
            os._exit(3)  # the reader has exited

    generator: Generator | None = None  # until "open", which comes before "check" and "batch"
    for request in _requests(sys.stdin.buffer):
        try:
            if "fetch" in request:
                send(fetched=fetch(request["fetch"], send))
            elif "open" in request:
                if request.get("protocol") != PROTOCOL:
                    theirs = request.get("protocol")
                    raise RequestError(
                        "config", f"protocol {theirs} was requested, but this is {PROTOCOL}"
                    )
                generator = Generator(request["open"], send)
                send(protocol=PROTOCOL, **generator.description())
            elif "check" in request:
                send(checked=cast(Generator, generator).check(request["check"]))
            elif "batch" in request:
                cast(Generator, generator).batch(request["batch"], request.get("at_most"))
            else:
                raise RequestError("config", f"unknown request {sorted(request)}")
        except RequestError as error:
            send(protocol=PROTOCOL, error=str(error), kind=error.kind)
    return 0


def _requests(stream: IO[bytes]) -> Iterator[_Request]:
    """Yields requests until "close"; the end of the stream ends the process immediately."""
    pending: queue.SimpleQueue[_Request] = queue.SimpleQueue()

    def read() -> None:
        for line in iter(stream.readline, b""):
            request = json.loads(line)
            pending.put(request)
            if "close" in request:
                return
        os._exit(3)

    threading.Thread(target=read, daemon=True).start()
    while True:
        request = pending.get()
        if "close" in request:
            return
        yield request


# ---- images and files ----------------------------------------------------------------------------


def control_image(inverse_depth: np.ndarray, normalization: str) -> np.ndarray:
    """The 8-bit depth image that conditions the generator; nearest is brightest.

    Args:
        inverse_depth: float [h, w], larger = nearer, with any scale and shift.
        normalization: "minimum_maximum": minus the minimum, divided by the maximum (MiDaS; used to
            train depth adapters and ControlNets). "percentiles": depth, the inverse, from its 2nd
            percentile (white) to its 85th (black), used to train adapters for ZoeDepth; distances
            beyond a thousand times the nearest are clipped.

    Returns:
        uint8 [h, w, 3], three equal channels.

    Raises:
        ItemError: if the map is invalid or constant.
    """
    import numpy as np

    values = np.asarray(inverse_depth)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ItemError(
            f"the control map is {values.dtype} with shape {values.shape}; it must be "
            "floating-point inverse depth [h, w], not an image"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ItemError("the control map has non-finite values")
    if normalization == "percentiles":
        if values.max() <= 0:
            raise ItemError("the control map has no positive inverse depth")
        depth = 1 / np.maximum(values, values.max() / 1000)
        near, far = np.percentile(depth, (2, 85))
        values, spread = far - depth, far - near
    else:
        values = values - values.min()
        spread = values.max()
    if not spread > 0:
        raise ItemError("the control map is constant, so it cannot condition the generator")
    levels = (np.clip(values / spread, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)


def read_control(path: _Path, size: Sequence[int], normalization: str) -> Image.Image:
    """Reads a control map as a Pillow image; it must have `size` (h, w)."""
    import numpy as np
    from PIL import Image

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ItemError(f"{path} cannot be read: {error}") from error
    if array.ndim == 2 and array.shape != tuple(size):
        raise ItemError(f"{path} has shape {array.shape}, but its image has {tuple(size)}")
    return Image.fromarray(control_image(array, normalization))


def read_image(path: _Path, size: Sequence[int]) -> Image.Image:
    """Reads a clean image in RGB; it must have `size` (h, w)."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            mode = file.mode
            # Pillow converts more than 8 bits by clipping at 255.
            if mode.startswith("I") or mode == "F":
                raise ItemError(f"{path} has more than 8 bits per channel (Pillow mode {mode!r})")
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ItemError(f"{path} cannot be read: {error}") from error
    if image.size != (size[1], size[0]):
        raise ItemError(f"{path} has {image.size[1]}x{image.size[0]} pixels, not {tuple(size)}")
    return image


def resized(image: Image.Image, size: Sequence[int]) -> Image.Image:
    """Resizes a Pillow image to (h, w) with Lanczos."""
    from PIL import Image

    size = (size[1], size[0])
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def save(image: Image.Image, temporary: _Path, output: _Path) -> None:
    """Writes a PNG under a temporary name and renames it.

    The default compression takes three times as long and only saves a tenth of the size.
    """
    try:
        with open(temporary, "wb") as file:
            image.save(file, format="PNG", compress_level=3)
        os.replace(temporary, output)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# ---- the generator -------------------------------------------------------------------------------


class Generator:
    """A loaded pipeline.

    Args:
        options: the content of "open"; see `backends/diffusers.py`.
        send: sends a reply.
    """

    def __init__(self, options: _Options, send: _Send) -> None:
        self._options, self._send = options, send
        # read by OpenMP and others when first imported
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(options["threads"])
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self._versions = _import_packages()
        import torch

        torch.set_num_threads(options["threads"])
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self._device, self._devices = _device(torch, options["device"], options["index"])
        self._dtype = _dtype(torch, options["dtype"], self._device.type)
        components = _load(options, self._dtype, self._progress)
        steps = components["scheduler"].config.num_train_timesteps
        if options["num_inference_steps"] > steps:
            raise RequestError(
                "config",
                f"num_inference_steps is {options['num_inference_steps']}, but the model has "
                f"{steps}",
            )
        self._tokenizers = [components[name] for name in components if "tokenizer" in name]
        self._controlled: Any = None
        if options["control"] is not None:
            self._controlled = self._pipeline(options["pipeline"], components)
        scene = {name: part for name, part in components.items() if name not in _CONTROLS}
        self._scenes = self._pipeline("text_to_image", scene)
        # Every step of a batch sends a heartbeat.
        components["unet"].register_forward_pre_hook(self._progress)

    def description(self) -> dict[str, object]:
        """The content of the handshake."""
        return {
            "versions": self._versions,
            "device": self._device.type,
            "devices": self._devices,
            "dtype": str(self._dtype).removeprefix("torch."),
            "threads": self._options["threads"],
        }

    def check(self, items: Sequence[_Asked]) -> dict[str, str]:
        """Finds prompts that the text encoder would silently truncate."""
        faults = {}
        for item in items:
            for prompt in item["prompts"]:
                for tokenizer in self._tokenizers:
                    limit, count = tokenizer.model_max_length, self._tokens(tokenizer, prompt)
                    if count > limit:
                        faults[item["key"]] = (
                            f"the prompt has {count} tokens, but the text encoder only reads "
                            f"{limit}: shorten {prompt!r}"
                        )
        return faults

    @staticmethod
    @functools.lru_cache(maxsize=100_000)
    def _tokens(tokenizer: Any, prompt: str) -> int:
        # including start and end tokens
        return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)

    def batch(self, items: Sequence[_Item], at_most: int | None = None) -> None:
        """Generates the images of items of equal size, and replies for each.

        Args:
            items: see `backends/diffusers.py`.
            at_most: maximum number of images that go through the pipeline together.
        """
        ready = []
        for item in items:
            try:
                ready.append((item, self._inputs(item)))
            except ItemError as error:
                self._send(key=item["key"], error=str(error))
        size = at_most or len(ready) or 1
        for start in range(0, len(ready), size):
            self._generate(ready[start : start + size], reduced=size < len(ready))

    def _progress(self, *_: object) -> None:
        self._send(progress=True)

    def _pipeline(self, name: str, components: dict[str, Any]) -> Any:
        import diffusers

        family = self._options["family"]
        if family == "sd":
            components = {
                "safety_checker": None,
                "feature_extractor": None,
                "requires_safety_checker": components.get("safety_checker") is not None,
                **components,
            }
        elif name != "t2i_adapter":
            # Otherwise this depends on whether an optional package is installed.
            components = {"add_watermarker": False, **components}
        pipeline = getattr(diffusers, _PIPELINES[name, family])(**components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._device)

    def _inputs(self, item: _Item) -> dict[str, Any]:
        """The pipeline's arguments for one item."""
        import torch

        generated = item["generated"]
        inputs = {
            "prompt": item["prompt"],
            "negative_prompt": item["negative_prompt"],
            # On the CPU, so that random numbers do not depend on the device; a new one for each
            # attempt.
            "generator": torch.Generator("cpu").manual_seed(item["seed"]),
        }
        if item["control"] is None:
            return inputs
        control = read_control(item["control"], item["size"], self._options["normalization"])
        control = resized(control, generated)
        if self._options["pipeline"] == "controlnet_img2img":
            path = cast(str, item["image"])  # only scenes have none
            inputs["image"] = resized(read_image(path, item["size"]), generated)
            inputs["control_image"] = control
        else:
            inputs["image"] = control
        return inputs

    def _generate(self, ready: Sequence[_Ready], reduced: bool) -> None:
        """Runs items through the pipeline, in halves if memory runs out."""
        try:
            failure = None
            images, flags = self._call(ready)
        except Exception as error:
            if not _out_of_memory(error):
                _print_traceback()
            failure, memory = f"{type(error).__name__}: {error}", _out_of_memory(error)
        # Outside the handler, tensors of the failed attempt are freed.
        if failure is not None and memory:
            self._free()
            if len(ready) > 1:
                half = (len(ready) + 1) // 2
                self._generate(ready[:half], reduced=True)
                self._generate(ready[half:], reduced=True)
                return
            failure = f"out of memory with a single image: reduce area ({failure})"
        if failure is not None:
            for item, _ in ready:
                self._send(key=item["key"], error=failure)
            return
        for (item, _), image, flagged in zip(ready, images, flags):  # noqa: B905 (Python 3.9)
            reply: dict[str, object] = {"key": item["key"]}
            if reduced:
                reply["reduced_batch"] = len(ready)
            if flagged:  # blacked out by the model's safety checker
                reply["flagged"] = True
            try:
                self._finish(image, item, flagged)
                reply["ok"] = True
            except ItemError as error:
                reply["error"] = str(error)
            except OSError as error:
                path = item["output"]
                reply["error"] = f"{path} cannot be written: {error.strerror or error}"
                reply["fatal"] = True
            self._send(**reply)

    def _call(self, ready: Sequence[_Ready]) -> tuple[np.ndarray, Sequence[bool]]:
        import torch

        options, generated = self._options, ready[0][0]["generated"]
        scene = ready[0][0]["control"] is None
        arguments: dict[str, Any] = {
            name: [inputs[name] for _, inputs in ready] for name in ready[0][1]
        }
        if not any(arguments["negative_prompt"]):
            # For SDXL, no prompt differs from an empty prompt.
            arguments["negative_prompt"] = None
        arguments.update(
            height=generated[0],
            width=generated[1],
            num_inference_steps=options["num_inference_steps"],
            guidance_scale=options["guidance_scale"],
            output_type="np",
        )
        pipeline = self._scenes if scene else self._controlled
        if not scene and options["pipeline"] == "t2i_adapter":
            arguments["adapter_conditioning_scale"] = options["control_scale"]
        elif not scene:
            arguments["controlnet_conditioning_scale"] = options["control_scale"]
        if not scene and options["pipeline"] == "controlnet_img2img":
            arguments["strength"] = options["strength"]
        with torch.inference_mode():
            output = pipeline(**arguments)
        self._progress()
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(ready)
        return output.images, flags

    def _finish(self, image: np.ndarray, item: _Item, flagged: bool) -> None:
        """Checks the generated image [h, w, 3] in [0, 1] and writes it at the requested size."""
        import numpy as np
        from PIL import Image

        if image.shape != (*item["generated"], 3):
            raise ItemError(
                f"the pipeline returned shape {image.shape}, not {(*item['generated'], 3)}"
            )
        if not np.isfinite(image).all() or not (image.any() or flagged):
            raise ItemError(
                f"the image is black or not finite, as {self._dtype} overflowed: set dtype to "
                "'bfloat16' or 'float32'"
            )
        levels = (image * 255).round().astype(np.uint8)
        picture = resized(Image.fromarray(levels), item["size"])
        save(picture, item["temporary"], item["output"])

    def _free(self) -> None:
        import torch

        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    import torch

    # The CPU's allocator raises a plain RuntimeError.
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


# ---- loading -------------------------------------------------------------------------------------

_CONTROLS = ("adapter", "controlnet")


def _import_packages() -> dict[str, str]:
    """Imports the required packages; returns their versions by name."""
    import importlib

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("torch", "transformers", "accelerate", "diffusers"):
        try:
            module = importlib.import_module(package)
        except Exception as error:  # broken installations fail in many ways
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RequestError(
                "package", f"{sys.executable} cannot import {package} ({problem}): {REMEDY}"
            ) from error
        versions[package] = module.__version__
        minimum = _MINIMA.get(package, (0,))
        if _numbers(module.__version__) < minimum:
            raise RequestError(
                "package",
                f"{sys.executable} has {package} {module.__version__}, but at least "
                f"{'.'.join(map(str, minimum))} is needed: {REMEDY}",
            )
    for package in ("diffusers", "transformers"):
        logging = importlib.import_module(f"{package}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    return versions


def _numbers(version: str) -> tuple[int, ...]:
    import re

    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _device(torch: Any, wanted: str, index: int) -> tuple[Any, int]:
    """A PyTorch device, and the number of devices of its kind."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    if (wanted == "cuda" and not cuda) or (wanted == "mps" and not mps):
        raise RequestError(
            "config",
            f"device is {wanted!r}, but PyTorch {torch.__version__} in {sys.executable} finds "
            "none: set device to 'auto', or install a PyTorch build that supports it",
        )
    if wanted == "cuda":
        return torch.device("cuda", index % cuda), cuda
    return torch.device(wanted), 1


def _dtype(torch: Any, wanted: str, device: str) -> Any:
    if wanted == "auto":
        wanted = "float16" if device == "cuda" else "float32"
    if wanted == "float16" and device == "cpu":
        raise RequestError(
            "config",
            "dtype is 'float16', which CPUs do not support: set it to 'float32' or 'bfloat16'",
        )
    return getattr(torch, wanted)


def _load(options: _Options, dtype: Any, progress: Callable[[], None]) -> dict[str, Any]:
    """The pipeline's components by name.

    Each is loaded with a fixed class, so that no folder determines what is run, and strictly, as
    diffusers and transformers silently fill missing weights with random numbers.
    """
    import diffusers
    import transformers

    base, xl = options["base"], options["family"] == "sdxl"
    folder = base["folder"]
    local = {"local_files_only": True}

    def model(cls: Any, place: str, part: str, **more: Any) -> Any:
        progress()
        where = os.path.join(place, part) if part else place
        with _loading(where):
            loaded, info = cls.from_pretrained(
                where, dtype=dtype, use_safetensors=True, output_loading_info=True, **local, **more
            )
        _require_complete(loaded, info, where)
        if loaded.dtype != dtype:  # all parts of a pipeline must have the same type
            raise RequestError("weights", f"{where} was loaded as {loaded.dtype}, not {dtype}")
        return loaded

    if base["file"] is None:
        components = {
            "unet": model(diffusers.UNet2DConditionModel, folder, "unet"),
            "vae": model(diffusers.AutoencoderKL, folder, "vae"),
            "text_encoder": model(transformers.CLIPTextModel, folder, "text_encoder"),
        }
        if xl:
            second = transformers.CLIPTextModelWithProjection
            components["text_encoder_2"] = model(second, folder, "text_encoder_2")
    else:
        components = _load_single_file(base["file"], folder, xl, dtype)
    for name in ("tokenizer", "tokenizer_2")[: 1 + xl]:
        with _loading(os.path.join(folder, name)):
            components[name] = transformers.CLIPTokenizer.from_pretrained(
                os.path.join(folder, name), **local
            )
        if components[name].model_max_length > 10_000:  # transformers' "unknown"
            components[name].model_max_length = components[
                "text_encoder"
            ].config.max_position_embeddings
    if base["safety_checker"]:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        components["safety_checker"] = model(StableDiffusionSafetyChecker, folder, "safety_checker")
        with _loading(os.path.join(folder, "feature_extractor")):
            components["feature_extractor"] = transformers.CLIPImageProcessor.from_pretrained(
                os.path.join(folder, "feature_extractor"), **local
            )
    with _loading(os.path.join(folder, "scheduler")):
        components["scheduler"] = _scheduler(folder, options["scheduler"])
    if options["control"] is not None:
        components |= _load_control(
            options["pipeline"], options["control"], components, dtype, model
        )
    for component in components.values():
        if hasattr(component, "eval"):
            component.eval()
    return components


def _scheduler(folder: str, name: str) -> Any:
    import diffusers

    folder = os.path.join(folder, "scheduler")
    with open(os.path.join(folder, "scheduler_config.json"), encoding="utf-8") as file:
        saved = getattr(diffusers, json.load(file)["_class_name"])
    if not issubclass(saved, diffusers.SchedulerMixin):
        raise ValueError(f"{saved.__name__} is not a scheduler")
    scheduler = saved.from_pretrained(folder, local_files_only=True)
    if name == "saved":
        return scheduler
    return getattr(diffusers, _SCHEDULERS[name]).from_config(scheduler.config)


def _load_single_file(path: str, folder: str, xl: bool, dtype: Any) -> dict[str, Any]:
    """Components from a file in the original code's layout."""
    import diffusers

    cls = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    with _loading(path):
        pipeline = cls.from_single_file(
            path, config=folder, dtype=dtype, local_files_only=True, safety_checker=None
        )
    names = ["unet", "vae", "text_encoder"] + ["text_encoder_2"] * xl
    components = {name: getattr(pipeline, name) for name in names}
    for component in components.values():
        _require_complete(component, {}, path)
    return components


def _load_control(
    pipeline: str,
    control: _Folder | _File,
    components: Mapping[str, Any],
    dtype: Any,
    model: Callable[[Any, str, str], Any],
) -> dict[str, Any]:
    import diffusers

    if pipeline == "t2i_adapter":
        folder = cast(str, control["folder"])  # the host never sends an adapter as a file
        return {"adapter": model(diffusers.T2IAdapter, folder, "")}
    if control["file"] is None:
        return {"controlnet": model(diffusers.ControlNetModel, control["folder"], "")}
    import tempfile

    # It is a copy of the U-Net's encoder, with the same config.
    like = diffusers.ControlNetModel.from_unet(components["unet"], load_weights_from_unet=False)
    with tempfile.TemporaryDirectory() as folder, _loading(control["file"]):
        like.save_config(folder)
        network = diffusers.ControlNetModel.from_single_file(
            control["file"], config=folder, dtype=dtype, local_files_only=True
        )
    _require_complete(network, {}, control["file"])
    return {"controlnet": network}


class _loading:
    """Turns any library error about a file into a single error type that names the file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> _loading:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RequestError):
            _print_traceback_of(error)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise RequestError(
                "weights", f"{self._path} cannot be loaded: {text[:1000]}"
            ) from error


def _print_traceback_of(error: BaseException) -> None:
    import traceback

    traceback.print_exception(type(error), error, error.__traceback__)


def _require_complete(model: Any, info: Mapping[str, Any], path: str) -> None:
    unset = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    missing = sorted(unset.union(info.get("missing_keys") or ()))
    mismatched = [str(entry) for entry in info.get("mismatched_keys") or ()]
    if missing or mismatched:
        wrong = [f"{len(missing)} weights are missing, such as {missing[0]}"] if missing else []
        wrong += [f"{len(mismatched)} have other shapes: {mismatched[0]}"] if mismatched else []
        raise RequestError(
            "weights",
            f"{path} does not fit {type(model).__name__}: {'; '.join(wrong)}. Copy it again, and "
            "check that weights and config belong together",
        )


# ---- downloads -----------------------------------------------------------------------------------

_TEXT = ["*.json", "*.txt", "*.model"]
_OTHER = ["*.fp16.*", "*.non_ema.*", "*flax*", "*onnx*", "*openvino*", "*.msgpack"]
_WEIGHTS = ["*.safetensors", "*.fp16.safetensors", "*.bin"]  # in this order


def fetch(wanted: Mapping[str, _Wanted], send: _Send) -> dict[str, str]:
    """Downloads snapshots from the Hub, as files only; nothing in them is run.

    Args:
        wanted: maps names to {"repository": "owner/name", "kind": "base" | "control" | "config",
            "without": [PATTERN]}.
        send: sends a reply.

    Returns:
        Maps names to folders.
    """
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(_PROGRESS):
            send(progress=True)

    try:
        from huggingface_hub import snapshot_download
    except Exception as error:
        raise RequestError(
            "package", f"{sys.executable} cannot import huggingface_hub: {REMEDY}"
        ) from error
    threading.Thread(target=live, daemon=True).start()
    folders = {}
    try:
        for name, each in wanted.items():
            get = functools.partial(snapshot_download, each["repository"])
            ignored = _OTHER + each.get("without", [])
            try:
                folder = get(allow_patterns=_TEXT, ignore_patterns=ignored)
                # Pickles only if there is nothing else; the host reads them without executing them.
                for ending in _WEIGHTS:
                    lacking = _lacking(folder, each)
                    if not lacking:
                        break
                    others = [other for other in ignored if other.strip("*") not in ending]
                    names = [f"{part}{ending}" for part in lacking]
                    folder = get(allow_patterns=names, ignore_patterns=others)
            except Exception as error:
                problem = " ".join(f"{type(error).__name__}: {error}".split())[:500]
                raise RequestError(
                    "weights",
                    f"there is no file or folder {each['repository']!r}, and the Hugging Face Hub "
                    f"has no such repository ({problem}): download it and use its folder",
                ) from error
            folders[name] = folder
    finally:
        stop.set()
    return folders


_PARTS = ("unet/", "vae/", "text_encoder/", "text_encoder_2/", "safety_checker/")  # of a base


def _lacking(folder: str, wanted: _Wanted) -> list[str]:
    """The wanted parts of a snapshot, known from their text files, that have no weights yet."""
    parts = {"base": _PARTS, "control": ("",), "config": ()}[wanted["kind"]]
    without = wanted.get("without", [])
    return [
        part
        for part in parts
        if os.path.isdir(os.path.join(folder, part))
        and not any(fnmatch.fnmatch(part, pattern) for pattern in without)
        and not any(
            name.endswith((".safetensors", ".bin"))
            for name in os.listdir(os.path.join(folder, part))
        )
    ]


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    except BaseException:
        _print_traceback()
    sys.stderr.flush()
    # Immediately, as Python would otherwise wait for the thread that reads.
    os._exit(status)
