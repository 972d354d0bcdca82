"""The content of a workdir, and the files that record it.

    run.json               the config that the run was started with; others are rejected
    journal/IofN.jsonl     finished images, written immediately, one per line; one file per shard
    clean/ID.png           the clean images
    labels/ID.npy          their labels, float32: metres with 0 where unknown, or relative disparity
    control/ID.npy         conditioning of the generator, float32, larger = nearer
    depth/ID.npy           dense depth of the clean image, if the label is sparse
    images/CONDITION/ID_VARIANT.png
    manifest.jsonl one line per image, in frame order, once all are done summary.csv gallery.html
    contact_sheet.png

The manifest only depends on the content of the journals: a run that was interrupted and finished
later has the same manifest.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from diffdepth_jax import atomic
from diffdepth_jax import config as configs
from diffdepth_jax.data import io
from diffdepth_jax.data.sources.adverse import MANIFEST_FILE
from diffdepth_jax.errors import ConfigError, DataError, MissingFileError, naming_file
from diffdepth_jax.typing import Output

RUN_FILE = "run.json"
# Of frames; those of images are in image_path.
CLEAN, LABELS, CONTROL, DEPTH = "clean", "labels", "control", "depth"
_JOURNALS = "journal"

Status = Literal["ok", "failed", "rejected"]
Shard = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A clean image and its files, or why it could not be prepared.

    Attributes:
        index: index in the source.
        id: id in the source; unique, usable as a file name.
        size: (height, width).
        intrinsics: nine numbers, row by row; None if unknown.
        weather: the source's `condition`.
        label_is, depth_is: what label and dense depth contain.
        depth: the file with dense depth, relative to the workdir; the label's file unless that is
            sparse.
        error: why preparing it failed; a rerun tries again.
        flagged: whether the clean image was generated and blacked out by the generator's safety
            checker; it is not tried again.
    """

    index: int
    id: str
    size: tuple[int, int] = (0, 0)
    intrinsics: tuple[float, ...] | None = None
    weather: str = ""
    label_is: Output = "metric_depth"
    depth_is: Output = "metric_depth"
    depth: str = ""
    error: str | None = None
    flagged: bool = False

    @property
    def clean(self) -> str:
        return f"{CLEAN}/{self.id}.png"

    @property
    def label(self) -> str:
        return f"{LABELS}/{self.id}.npy"

    @property
    def control(self) -> str:
        return f"{CONTROL}/{self.id}.npy"

    @property
    def files(self) -> tuple[str, ...]:
        """The size and files of a frame without an error."""
        return tuple(dict.fromkeys((self.clean, self.label, self.control, self.depth)))


@dataclasses.dataclass(frozen=True)
class Made:
    """The result for one image.

    Attributes:
        key: "<id>/<condition>/<variant>".
        error: why generating it failed; a rerun tries again.
        details: what the backend recorded about it.
        scored: whether the structure was scored.
        abs_rel, edge_agreement: see `structure`; None if they could not be computed.
    """

    key: str
    error: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scored: bool = False
    abs_rel: float | None = None
    edge_agreement: float | None = None

    @property
    def flagged(self) -> bool:
        return bool(self.details.get("flagged"))


def key(frame: str, condition: str, variant: int) -> str:
    return f"{frame}/{condition}/{variant}"


def image_path(frame: str, condition: str, variant: int) -> str:
    """The path of an image, relative to the workdir."""
    return f"images/{condition}/{frame}_{variant}.png"


class RunFile:
    """A JSON file with named parts, such as `run.json`, which records how a workdir was started."""

    def __init__(self, path: Path):
        self.path = path
        self._contents: dict[str, Any] = {}
        if self.path.exists():
            with naming_file(self.path, "read"):
                text = self.path.read_bytes()
            try:
                self._contents = dict(json.loads(text))
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{self.path} is damaged: delete this workdir, or use another one"
                ) from error

    def get(self, part: str) -> Any:
        return self._contents.get(part)

    def says(self, part: str, value: Any) -> bool:
        """Whether a part is recorded with this value."""
        return part in self._contents and self._contents[part] == _as_json(value)

    def require(self, part: str, value: Any) -> None:
        """Records a part, or rejects a value that differs from the recorded one.

        Raises:
            ConfigError: lists the differences.
        """
        value = _as_json(value)
        if part not in self._contents:
            self.set(part, value)
            return
        if lines := configs.differences(self._contents[part], value, part):
            raise ConfigError(
                f"{self.path.parent} was started with a different config ({'; '.join(lines)}): "
                "continue with the same config, or use another workdir"
            )

    def set(self, part: str, value: Any) -> None:
        """Records a part, replacing any earlier value."""
        value = _as_json(value)
        if self._contents.get(part) != value:
            self._contents[part] = value
            text = json.dumps(self._contents, indent=1)
            atomic.write_text(self.path, text + "\n")

    def fingerprint(self) -> str:
        """A hash of the config that the workdir was started with, for its journals."""
        text = json.dumps([self.get("config"), self.get("prompts")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_json(value: Any) -> Any:
    """The value after a round trip through JSON: tuples become lists."""
    return json.loads(json.dumps(value))


@dataclasses.dataclass
class State:
    """The content of a workdir's journals.

    Attributes:
        frames: frames by index.
        images: the last entry of each image, by key; one with a score has precedence over another
            process's without.
        scenes: the results for generated clean images, by key.
        makers: shards that recorded an image as generated, by key.
        runs: fingerprint of each shard's config.
        shards: shards that have a journal.
    """

    frames: dict[int, Frame] = dataclasses.field(default_factory=dict)
    images: dict[str, Made] = dataclasses.field(default_factory=dict)
    scenes: dict[str, Made] = dataclasses.field(default_factory=dict)
    makers: dict[str, set[Shard]] = dataclasses.field(default_factory=dict)
    runs: dict[Shard, set[str]] = dataclasses.field(default_factory=dict)
    shards: list[Shard] = dataclasses.field(default_factory=list)
    # Shards that recorded an image's score last, by key.
    _scorers: dict[str, Shard] = dataclasses.field(default_factory=dict, init=False)

    def take(self, line: Mapping[str, Any], shard: Shard) -> None:
        if "run" in line:
            self.runs.setdefault(shard, set()).add(line["run"])
        elif "frame" in line:
            values = dict(line["frame"])
            intrinsics = values.get("intrinsics")
            values["size"] = tuple(values["size"])
            values["intrinsics"] = None if intrinsics is None else tuple(intrinsics)
            frame = Frame(**values)
            self.frames[frame.index] = frame
        elif "scene" in line:
            made = Made(**line["scene"])
            self.scenes[made.key] = made
        else:
            made = Made(**line["image"])
            # Journals are read by name, not by age: this entry may be from before another process
            # scored the image.
            old = self.images.get(made.key)
            scored_by_another = old is not None and old.scored and self._scorers[made.key] != shard
            if made.error is not None or made.scored or not scored_by_another:
                self.images[made.key] = made
            if made.scored:
                self._scorers[made.key] = shard
            if made.error is None:
                self.makers.setdefault(made.key, set()).add(shard)


class Journal:
    """The journal of one process, which also reads those of the others."""

    def __init__(self, workdir: Path, shard: Shard):
        self._directory = workdir / _JOURNALS
        self._shard = shard
        self.path = self._directory / f"{shard[0]:05d}of{shard[1]:05d}.jsonl"

    @functools.cached_property
    def state(self) -> State:
        """The content of all journals, and everything recorded since."""
        state = State()
        for path in self._paths():
            self._read(path, state)
        return state

    def sizes(self) -> dict[str, int]:
        """The total length of all journals, which only grow."""
        with naming_file(self._directory, "read"):
            return {path.name: path.stat().st_size for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob("*of*.jsonl"))

    def _read(self, path: Path, state: State) -> None:
        try:
            index, count = (int(part) for part in path.stem.split("of"))
        except ValueError:
            return
        shard = index, count
        state.shards.append(shard)
        with naming_file(path, "read"):
            lines = path.read_bytes().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):  # the process was stopped while writing this line
                continue
            # After a power failure, a line may contain anything: generate its image again.
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                state.take(json.loads(line), shard)

    @contextlib.contextmanager
    def open(self, fingerprint: str) -> Iterator[None]:
        """Opens the process's own file for `note`."""
        with naming_file(self.path, "written"):
            self._directory.mkdir(exist_ok=True)
            if self.path.exists():
                whole = self.path.read_bytes().rpartition(b"\n")
                os.truncate(self.path, len(whole[0]) + len(whole[1]))
            self._file = self.path.open("a", encoding="utf-8")
        try:
            if fingerprint not in self.state.runs.get(self._shard, ()):
                self._write({"run": fingerprint})
            yield
        finally:
            with naming_file(self.path, "written"):
                self._file.close()

    def note(self, entry: Frame | Made, kind: Literal["frame", "image", "scene"]) -> None:
        """Writes an entry, and adds it to `state`."""
        self._write({kind: vars(entry)})

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False)
        with naming_file(self.path, "written"):
            self._file.write(text + "\n")
            self._file.flush()
        self.state.take(json.loads(text), self._shard)


def check_shards(state: State, keys: Sequence[str], fingerprint: str) -> None:
    """Rejects journals that are incomplete or do not belong together.

    Args:
        state: the workdir's state.
        keys: all images that must exist.
        fingerprint: fingerprint of the workdir's config.

    Raises:
        DataError: for journals of a different config, or images that are missing or made by two
            shards.
    """
    others = [shard for shard, runs in state.runs.items() if runs != {fingerprint}]
    if others:
        raise DataError(
            f"the journals of shards {_listed(others)} belong to a different config than run.json: "
            "run these shards again in a workdir with this config"
        )
    doubled = [key for key in keys if sum(n > 1 for _, n in state.makers.get(key, ())) > 1]
    if doubled:
        raise DataError(
            f"{len(doubled)} images were made by several shards, starting with {doubled[0]} by "
            f"{_listed(state.makers[doubled[0]])}: these shards overlap; delete the journals of "
            "one of them"
        )
    missing = [key for key in keys if key not in state.images]
    if missing:
        counts = {count for _, count in state.shards if count > 1}
        absent = [
            (index, count)
            for count in sorted(counts)
            for index in range(count)
            if (index, count) not in state.shards
        ]
        note = f"  (no journals of shards {_listed(absent)})" if absent else ""
        raise DataError(
            f"{len(missing)} of {len(keys)} images are missing, starting with {missing[0]}{note}: "
            "run these shards, or run the command without --shard and --merge to generate the "
            "rest"
        )


def _listed(shards: Iterable[Shard]) -> str:
    texts = [f"{index}/{count}" for index, count in sorted(shards)]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of the manifest: an image, what it was generated from, and the result.

    Attributes:
        id, condition, variant: identify the image; `condition` is a name in the prompt bank.
        status: `rejected` if the structure is lost or the generator's safety checker blacked out
            the image, and training skips it; `failed` if there is no image; otherwise `ok`.
        reason: why it is not `ok`.
        image, label, clean: files, relative to the workdir; None if there are none.
        label_is: "metric_depth" or "relative_disparity".
        intrinsics: nine numbers, row by row; None if unknown.
        weather: the source's condition of the clean image.
        prompt, negative_prompt, seed: what the image was generated from.
        backend: what generated it, for example "diffusers-t2i_adapter" or "physical-fog".
        structure: {"abs_rel", "edge_agreement"}; None if it was not scored.
        details: what the backend recorded about it.
    """

    id: str
    condition: str
    variant: int
    status: Status
    reason: str | None
    image: str | None
    label: str | None
    clean: str | None
    label_is: Output
    intrinsics: tuple[float, ...] | None
    weather: str
    prompt: str
    negative_prompt: str
    seed: int
    backend: str
    structure: Mapping[str, float | None] | None
    details: Mapping[str, Any]


def write(workdir: Path, records: Sequence[Record]) -> None:
    """Writes the manifest atomically."""
    atomic.write_text(workdir / MANIFEST_FILE, as_text(records))


def as_text(records: Sequence[Record]) -> str:
    return "".join(json.dumps(vars(record), allow_nan=False) + "\n" for record in records)


def read(workdir: Path) -> list[Record]:
    """The manifest of a finished workdir.

    Raises:
        MissingFileError: if there is none.
        DataError: if it is damaged.
    """
    path = workdir / MANIFEST_FILE
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist: use the workdir of a finished run of generate_adverse.py"
        )
    records = []
    for number, row in enumerate(io.read_json_lines(path), start=1):
        try:
            record = Record(**row)
        except TypeError as error:
            raise DataError(f"{path}, line {number} is not a record: {error}") from error
        if record.intrinsics is not None:
            record = dataclasses.replace(record, intrinsics=tuple(record.intrinsics))
        records.append(record)
    return records


def counts(records: Sequence[Record]) -> dict[str, Counter[str]]:
    """Number of images with each status, by condition."""
    found: dict[str, Counter[str]] = {}
    for record in records:
        found.setdefault(record.condition, Counter())[record.status] += 1
    return found
