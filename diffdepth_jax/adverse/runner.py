"""A run: generates clean images x conditions x variants with a backend, each once.

Frames are first read and labelled; then images are generated and scored by the teacher as they
arrive. Everything finished is immediately recorded in the workdir's journal (`manifest`), so a
killed run continues where it stopped, and several processes can share one (`shard`).

Batches only depend on the frames: `batch_size` consecutive frames form a block, whose images are
split, in order, into batches of equal size. If any image of a batch is missing, the whole batch is
generated again, as pixels can depend on the rest of the batch. Shards take whole blocks, so they do
not change batches either.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tqdm import tqdm

from diffdepth_jax import atomic, locking, registry
from diffdepth_jax import config as configs
from diffdepth_jax.adverse import gallery, labels, manifest, prompts, summary
from diffdepth_jax.adverse.backends import Item, Outcome, Session
from diffdepth_jax.adverse.config import AdverseConfig
from diffdepth_jax.adverse.manifest import Frame, Journal, Made, Record, RunFile, Shard
from diffdepth_jax.data import io, listing
from diffdepth_jax.data.listing import known
from diffdepth_jax.errors import ConfigError, DataError, FileError, naming_file

T = TypeVar("T")

# Fields that may change between runs in one workdir. The backend decides for its own
# (`Session.identity`), and a source's files may be moved.
_FREE = ("structure", "gallery", "cache", "on_error", "backend")
_FREE_OF_NETWORKS = ("batch_size",)
_FREE_OF_SOURCES = ("root", "check_files")  # names, or suffixes of names


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        records: all images in the order of the manifest; for a shard, those of its frames.
        complete: whether the manifest was written; shards do not write it.
    """

    records: Sequence[Record]
    complete: bool

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.status == "failed"]


def run(
    config: AdverseConfig,
    workdir: str | os.PathLike[str],
    *,
    python: str | None = None,
    shard: Shard | None = None,
    merge: bool = False,
    progress: bool = True,
) -> Result:
    """Generates all missing images of a config, and writes the manifest.

    Args:
        config: what to generate.
        workdir: created if missing; `manifest` describes its content. A finished workdir is not
            changed.
        python: the interpreter for the backend's process, if it has one.
        shard: (index, count): only generate every count-th block of frames, and no manifest, which
            `merge` or the same call without a shard writes.
        merge: generate nothing; check that the shards are complete, and write the manifest.
        progress: whether to show progress bars.

    Returns:
        All images with their status. Repeating the call retries failed ones.

    Raises:
        ConfigError: for an unusable config, or a workdir that was started with a different one.
        DataError: with `merge`, for incomplete or unscored shards; for frames with the same id.
        FileError: for files that cannot be read or written.
        WeightsError: for unusable weights of the teacher or the backend.
        KeyboardInterrupt: with a message that says how to resume.
    """
    directory = Path(workdir).expanduser()
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard is {shard}; it must be (index, count) with 0 <= index < count")
    if merge and not (directory / manifest.RUN_FILE).exists():
        raise ConfigError(f"{directory} contains no run: use the workdir of the shards")
    lock = "generation" if shard is None else f"generation-{shard[0]}of{shard[1]}"
    with atomic.directory(directory), locking.hold(directory, lock):
        atomic.remove_leftovers(directory)
        return _Run(config, directory, python, shard, progress).run(merge)


class _Run:
    """One execution in a workdir."""

    def __init__(
        self,
        config: AdverseConfig,
        workdir: Path,
        python: str | None,
        shard: Shard | None,
        progress: bool,
    ):
        self.config = config
        self.workdir = workdir
        self.python = python
        self.shard = shard
        self.progress = progress
        self.backend: ModuleType = registry.module("backend", config.backend.name)
        self.batch_size: int = config.backend.batch_size
        self.bank = prompts.read(config.prompts.files)
        source = None if config.source is None else config.source.name
        default = "tabletop" if config.scenes is not None else None
        self.scene = self.bank.scene_of(source, config.prompts.scene or default)
        if self.backend.USES_PROMPTS:
            with_scene = [prompts.SCENE] if config.scenes is not None else []
            self.bank.check([*config.conditions, *with_scene], self.scene)
        if prompts.SCENE in config.conditions:
            raise ConfigError(
                "config.conditions has 'scene', which is reserved for the clean images of scenes: "
                "leave it out"
            )
        self.run_file = RunFile(workdir / manifest.RUN_FILE)
        self.journal = Journal(workdir, shard or (0, 1))
        self.report_file = RunFile(self.journal.path.with_name("report.json"))
        self.teacher = labels.network(config.teacher)
        self.steering = labels.network(config.steering)
        if self.teacher is None and config.structure.worst_share:
            warnings.warn(
                f"structure.worst_share is {config.structure.worst_share:g}, but without "
                "teacher.checkpoint nothing scores the images, so none is rejected for its "
                "structure: set the checkpoint, or set worst_share to 0",
                stacklevel=3,
            )
        self.originals: dict[int, Path] = {}  # the source's clean image files, by frame

    @property
    def state(self) -> manifest.State:
        return self.journal.state

    @property
    def _scores(self) -> bool:
        """Whether images get a structure score."""
        return self.config.structure.score and self.teacher is not None

    def run(self, merge: bool) -> Result:
        self.run_file.require("config", _fixed(self.config))
        self.run_file.require("prompts", [self.bank.fingerprint(), self.scene])
        if self.run_file.get("checkpoints") not in (None, self._checkpoints()):
            self._require_networks()  # a finished workdir would otherwise not notice other weights
        if not merge and (records := self._reported()) is not None:
            return Result(records, True)
        if not merge and not self._is_finished():
            with _how_to_go_on(self):
                self._work()
        elif merge:
            self._check_merge()
        indices = self._indices(self.run_file.get("frames"))
        records = self._records([self.state.frames[index] for index in indices])
        if self.shard is None:
            self._report(records)
        return Result(records, self.shard is None)

    def _checkpoints(self) -> list[str | None]:
        return [self.config.teacher.checkpoint, self.config.steering.checkpoint]

    def _require_networks(self) -> None:
        """Rejects other weights than the workdir was started with; moved ones are fine."""
        for part, network in (("teacher", self.teacher), ("steering", self.steering)):
            self.run_file.require(part, network.fingerprint if network else None)
        self.run_file.set("checkpoints", self._checkpoints())

    def _reported(self) -> list[Record] | None:
        """The manifest, if it matches this config exactly, nothing failed and all files exist.

        The journals have the same content, but are not read, as they can have 100 MB.
        """
        same = self.run_file.says("backend_config", configs.to_mapping(self.config.backend))
        if self.shard is not None or not same or not self.report_file.says("of", self._shown()):
            return None
        if not all(path.exists() for path in self._reports()):
            return None
        try:
            records = manifest.read(self.workdir)
        except DataError:  # from another version
            return None
        files = {file for each in records for file in (each.image, each.clean, each.label) if file}
        folders = {
            folder: _names(self.workdir / folder) for folder in set(map(os.path.dirname, files))
        }
        whole = all(os.path.basename(file) in folders[os.path.dirname(file)] for file in files)
        failed = any(record.status == "failed" for record in records)
        # Only the journals tell an image that was not scored from one without a possible score.
        unscored = self._scores and any(
            record.status == "ok" and record.structure is None for record in records
        )
        return records if whole and not failed and not unscored else None

    def _reports(self) -> list[Path]:
        names = (manifest.MANIFEST_FILE, *gallery.FILES, summary.FILE)
        return [self.workdir / name for name in names]

    def _shown(self) -> dict[str, Any]:
        """Settings that may change, and that affect the manifest and the gallery."""
        shown = {name: vars(getattr(self.config, name)) for name in ("structure", "gallery")}
        return {**shown, "journals": self.journal.sizes()}

    def _is_finished(self) -> bool:
        """Whether everything exists, as far as known without opening source, network or backend."""
        count = self.run_file.get("frames")
        backend = configs.to_mapping(self.config.backend)
        if count is None or not self.run_file.says("backend_config", backend):
            return False
        frames = [self.state.frames.get(index) for index in self._indices(count)]
        return all(
            frame is not None and self._frame_is_done(frame) and not self._missing(frame)
            for frame in frames
        )

    def _check_merge(self) -> None:
        count = self.run_file.get("frames")
        prepared = [self.state.frames.get(index) for index in range(count or 0)]
        frames = [frame for frame in prepared if frame is not None]
        absent = len(prepared) - len(frames)
        if not count or absent:
            raise DataError(
                f"{self.workdir}: {absent} of {count or 0} frames have not been prepared: run the "
                "missing shards, or run the command without --shard and --merge to generate what "
                "is left"
            )
        keys = [key for frame in frames for key, *_ in self._images(frame)]
        # An unreadable frame has no images; the manifest records this.
        wanted = [key for frame in frames for key, *_ in self._images(frame) if not frame.error]
        manifest.check_shards(self.state, wanted, self.run_file.fingerprint())
        if self._scores and (unscored := [key for key in wanted if self._is_unscored(key)]):
            raise DataError(
                f"{self.workdir}: {len(unscored)} of {len(wanted)} images have not been scored, "
                f"starting with {unscored[0]}: run the command without --shard and --merge to "
                "score them"
            )
        listing.require_unique(keys, str(self.workdir))

    # ---- remaining work

    def _indices(self, count: int) -> list[int]:
        """The frames of this shard: whole blocks."""
        part, parts = self.shard or (0, 1)
        return [index for index in range(count) if index // self.batch_size % parts == part]

    def _images(self, frame: Frame) -> Iterator[tuple[str, str, int]]:
        """(key, condition, variant) of a frame's images."""
        for condition in self.config.conditions:
            for variant in range(self.config.variants):
                yield manifest.key(frame.id, condition, variant), condition, variant

    def _frame_is_done(self, frame: Frame) -> bool:
        if frame.flagged:
            return True
        return frame.error is None and all((self.workdir / file).exists() for file in frame.files)

    def _is_there(self, key: str, output: Path) -> bool:
        made = self.state.images.get(key)
        return made is not None and made.error is None and output.exists()

    def _is_unscored(self, key: str) -> bool:
        made = self.state.images[key]
        return made.error is None and not made.scored

    def _output(self, frame: str, condition: str, variant: int) -> Path:
        return self.workdir / manifest.image_path(frame, condition, variant)

    def _missing(self, frame: Frame) -> list[str]:
        """The keys of a frame's images that have not been generated or scored yet."""
        if frame.error is not None:
            return []
        return [
            key
            for key, condition, variant in self._images(frame)
            if not self._is_there(key, self._output(frame.id, condition, variant))
            or (self.config.structure.score and not self.state.images[key].scored)
        ]

    def _item(self, frame: Frame, condition: str, variant: int) -> Item:
        prompt = self._prompt(frame.id, condition, variant)
        return Item(
            key=manifest.key(frame.id, condition, variant),
            condition=condition,
            seed=prompts.noise_seed(self.config.seed, frame.id, condition, variant),
            prompt=prompt.text,
            negative_prompt=prompt.negative,
            image=self.workdir / frame.clean,
            control=self.workdir / frame.control,
            depth=self.workdir / frame.depth,
            intrinsics=frame.intrinsics,
            output=self._output(frame.id, condition, variant),
            size=frame.size,
            depth_is=frame.depth_is,
            original=self.originals.get(frame.index),
        )

    def _prompt(self, frame: str, condition: str, variant: int) -> prompts.Prompt:
        if not self.backend.USES_PROMPTS:
            return prompts.Prompt("", "")
        return self.bank.draw(self.config.seed, frame, condition, variant, self.scene)

    # ---- generation

    def _work(self) -> None:
        config, workdir = self.config, self.workdir
        atomic.remove_leftovers(workdir, recursive=True)
        source = None
        if config.source is not None:
            from diffdepth_jax.data import pipeline  # needs JAX, which a finished run does not

            source = pipeline.evaluation_samples(config.source, config.limit, config.on_error)
            listed = _listed(source)
            self.run_file.require("frames", len(source))
            if listed is not None:
                where = f"the source {config.source.name!r}"
                listing.require_unique((frame.id for frame in listed), where)
                self.originals = {i: Path(frame.image) for i, frame in enumerate(listed)}
        else:
            self.run_file.require("frames", known(config.scenes).count)
        indices = self._indices(self.run_file.get("frames"))
        with (
            self.backend.open(config.backend, python=self.python, workdir=workdir) as session,
            self.journal.open(self.run_file.fingerprint()),
        ):
            self.run_file.require("backend", session.identity())
            self.run_file.set("backend_config", configs.to_mapping(config.backend))
            self._require_networks()
            if source is None:
                self._make_scenes(session, indices)
            self._prepare(indices, source)
            self._make_images(session, [self.state.frames[index] for index in indices])

    def _make_scenes(self, session: Session, indices: Sequence[int]) -> None:
        """Generates clean images from prompts."""
        items = {index: self._scene_item(index) for index in indices}
        missing = {
            index
            for index, item in items.items()
            if item.key not in self.state.scenes
            or self.state.scenes[item.key].error is not None
            or not item.output.exists()
        }
        batches = [
            [items[index] for index in block]
            for block in _blocks(indices, self.batch_size)
            if not missing.isdisjoint(block)
        ]
        if not batches:
            return
        wanted = {items[index].key for index in missing}
        self._make_folders(batches)
        session.check([item for batch in batches for item in batch])
        with self._bar("scenes", len(items), len(items) - len(missing)) as bar:
            for item, outcome in _outcomes(session, batches):
                if item.key in wanted:
                    self.journal.note(_made(item, outcome), "scene")
                    bar.update()

    def _scene_item(self, index: int) -> Item:
        name = f"scene_{index:06d}"
        prompt = self._prompt(name, prompts.SCENE, 0)
        return Item(
            key=manifest.key(name, prompts.SCENE, 0),
            condition=prompts.SCENE,
            seed=prompts.noise_seed(self.config.seed, name, prompts.SCENE, 0),
            prompt=prompt.text,
            negative_prompt=prompt.negative,
            image=None,
            control=None,
            depth=None,
            intrinsics=None,
            output=self._output(name, prompts.SCENE, 0),
            size=known(self.config.scenes).size,
        )

    def _read_scene(self, index: int) -> Mapping[str, Any]:
        item = self._scene_item(index)
        name, made = item.output.stem.rpartition("_")[0], self.state.scenes[item.key]
        if made.error is not None:
            return {"id": name, "error": f"its clean image could not be generated: {made.error}"}
        image = io.read_image(item.output)
        return {
            "id": name,
            "image": image,
            "depth": listing.unmeasured(image.shape[:2]),
            "intrinsics": listing.UNKNOWN,
            "condition": "indoor",
        }

    def _prepare(self, indices: Sequence[int], source: Sequence[Mapping[str, Any]] | None) -> None:
        """Reads and labels frames that have not been prepared yet."""
        todo = [
            index
            for index in indices
            if index not in self.state.frames or not self._frame_is_done(self.state.frames[index])
        ]
        if not todo:
            return
        if source is None:
            for index in list(todo):
                item = self._scene_item(index)
                if self.state.scenes[item.key].flagged:
                    why = "the generator's safety checker blacked out its clean image"
                    name = item.output.stem.rpartition("_")[0]
                    self.journal.note(Frame(index, name, error=why, flagged=True), "frame")
                    todo.remove(index)
        read = self._read_scene if source is None else source.__getitem__
        labeller = labels.Labeller(self.config, self.teacher, self.steering, self.workdir)
        with self._bar("labels", len(indices), len(indices) - len(todo)) as bar:
            done = set(indices).difference(todo)
            names = {self.state.frames[index].id: index for index in done}
            for frame in labeller.prepare(todo, _checking_names(read, names)):
                self.journal.note(frame, "frame")
                bar.update()

    def _make_images(self, session: Session, frames: Sequence[Frame]) -> None:
        """Generates and scores missing images."""
        by_key = {key: frame for frame in frames for key, *_ in self._images(frame)}
        judge = _Judge(self)
        wanted = [key for frame in frames for key in self._missing(frame)]
        with self._bar("images", len(by_key), len(by_key) - len(wanted)) as bar:
            # Generated before a run was killed, but not scored.
            all_batches = list(self._batches(frames))
            items = {item.key: item for batch in all_batches for item in batch}
            unseen = [key for key in wanted if self._is_there(key, items[key].output)]
            for key in unseen:
                bar.update(judge.add(by_key[key], items[key], self.state.images[key]))
            missing = set(wanted).difference(unseen)
            batches = [
                batch for batch in all_batches if not missing.isdisjoint(item.key for item in batch)
            ]
            if batches:
                self._make_folders(batches)
                session.check([item for batch in batches for item in batch])
            num_failed = 0
            bar.set_postfix(failed=num_failed)
            for item, outcome in _outcomes(session, batches):
                made = _made(item, outcome)
                if item.key not in missing:  # generated again with its batch
                    continue
                self.journal.note(made, "image")
                if made.error is None:
                    bar.update(judge.add(by_key[item.key], item, made))
                else:
                    num_failed += 1
                    bar.set_postfix(failed=num_failed)
                    bar.update()
            bar.update(judge.finish())

    def _batches(self, frames: Sequence[Frame]) -> Iterator[list[Item]]:
        blocks: dict[int, list[Frame]] = {}
        for frame in frames:
            if frame.error is None:
                blocks.setdefault(frame.index // self.batch_size, []).append(frame)
        for block in blocks.values():
            by_size: dict[tuple[int, int], list[Item]] = {}
            for frame in block:
                for _, condition, variant in self._images(frame):
                    item = self._item(frame, condition, variant)
                    by_size.setdefault(frame.size, []).append(item)
            for items in by_size.values():
                yield from _blocks(items, self.batch_size)

    def _make_folders(self, batches: Sequence[Sequence[Item]]) -> None:
        for folder in {item.output.parent for batch in batches for item in batch}:
            with naming_file(folder, "created"):
                folder.mkdir(parents=True, exist_ok=True)

    def _bar(self, name: str, total: int, initial: int) -> tqdm:
        return tqdm(
            desc=name,
            total=total,
            initial=initial,
            unit=" images",
            disable=not self.progress,
            dynamic_ncols=True,
        )

    # ---- reports

    def _records(self, frames: Sequence[Frame]) -> list[Record]:
        records = [self._record(frame, *image) for frame in frames for image in self._images(frame)]
        return summary.reject(records, self.config.structure)

    def _record(self, frame: Frame, key: str, condition: str, variant: int) -> Record:
        prompt = self._prompt(frame.id, condition, variant)
        made = self.state.images.get(key) or Made(key, error="not generated yet")
        if frame.error is not None:
            made = Made(key, error=frame.error)
        there = made.error is None
        scores = {"abs_rel": made.abs_rel, "edge_agreement": made.edge_agreement}
        rejected = made.flagged or frame.flagged
        reason = (
            "the generator's safety checker blacked out the image" if made.flagged else made.error
        )
        return Record(
            id=frame.id,
            condition=condition,
            variant=variant,
            status="rejected" if rejected else "ok" if there else "failed",
            reason=reason,
            image=manifest.image_path(frame.id, condition, variant) if there else None,
            label=frame.label if frame.error is None else None,
            clean=frame.clean if frame.error is None else None,
            label_is=frame.label_is,
            intrinsics=frame.intrinsics,
            weather=frame.weather,
            prompt=prompt.text,
            negative_prompt=prompt.negative,
            seed=prompts.noise_seed(self.config.seed, frame.id, condition, variant),
            backend=self.backend.title(self.config.backend, condition),
            structure=scores if there and made.abs_rel is not None else None,
            details=made.details,
        )

    def _report(self, records: Sequence[Record]) -> None:
        """Writes the manifest and the gallery, unless they exist."""
        path, text = self.workdir / manifest.MANIFEST_FILE, manifest.as_text(records)
        pictures = vars(self.config.gallery)
        drawn = self.report_file.says("gallery", pictures) and all(
            each.exists() for each in self._reports()
        )
        with naming_file(path, "read"):
            same = drawn and path.read_text() == text
        if not same:
            summary.write(self.workdir, records)
            gallery.write(self.workdir, records, self.config.gallery)
            self.report_file.set("gallery", pictures)
            manifest.write(
                self.workdir, records
            )  # last, as its existence marks the run as complete
        self.report_file.set("of", self._shown())


class _Judge:
    """Scores images in the teacher's batches, and records them."""

    def __init__(self, run: _Run):
        self._run = run
        self._waiting: list[tuple[Frame, Item, Made]] = []
        self._looks = run.config.structure.score
        self._teacher = run.teacher if self._looks else None
        self._size = self._teacher.config.batch_size if self._teacher else 1

    def add(self, frame: Frame, item: Item, made: Made) -> int:
        """Adds an existing image; returns the number recorded as scored."""
        self._waiting.append((frame, item, made))
        return self.finish() if len(self._waiting) >= self._size else 0

    def finish(self) -> int:
        """Scores the waiting images; returns their number."""
        waiting, self._waiting = self._waiting, []
        teacher = self._teacher
        seen = [each for each in waiting if not each[2].flagged] if teacher else []
        found = {}
        if teacher is not None and seen:
            from diffdepth_jax.adverse import structure  # needs SciPy too

            depths = teacher.predict([io.read_image(item.output) for _, item, _ in seen])
            for (frame, item, _), depth in zip(seen, depths, strict=True):
                found[item.key] = structure.compare(
                    depth,
                    io.read_npy(self._run.workdir / frame.label),
                    prediction_is=teacher.output,
                    label_is=frame.label_is,
                )
        for _, item, made in waiting:
            scores = found.get(item.key)
            values = {} if scores is None else dataclasses.asdict(scores)
            made = dataclasses.replace(made, scored=self._looks, **values)
            self._run.journal.note(made, "image")
        return len(waiting)


def _outcomes(
    session: Session, batches: Sequence[Sequence[Item]]
) -> Iterator[tuple[Item, Outcome]]:
    """One outcome for every item; an unexpected file becomes an error."""
    waiting = {item.key: item for batch in batches for item in batch}
    for outcome in session.generate(batches):
        item = waiting.pop(outcome.key, None)
        if item is None:
            raise RuntimeError(f"the backend generated {outcome.key!r}, which was not requested")
        yield item, outcome if outcome.error is not None else _looked_at(item, outcome)
    for key, item in waiting.items():
        yield item, Outcome(key, error="the backend ended without an outcome for it")


def _looked_at(item: Item, outcome: Outcome) -> Outcome:
    try:
        image = io.read_image(item.output)
    except (DataError, FileError) as error:
        return Outcome(item.key, error=f"the backend wrote no image: {error}")
    if image.shape[:2] != item.size:
        return Outcome(
            item.key,
            error=f"the backend wrote an image of size {image.shape[:2]} instead of {item.size}",
        )
    if not image.any():
        return dataclasses.replace(outcome, details={**outcome.details, "flagged": True})
    return outcome


def _names(folder: Path) -> set[str]:
    """The names in a folder; empty if it does not exist."""
    with naming_file(folder, "read"):
        return set(os.listdir(folder)) if folder.is_dir() else set()


def _made(item: Item, outcome: Outcome) -> Made:
    return Made(item.key, outcome.error, dict(outcome.details))


def _blocks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _listed(source: Any) -> list[listing.Frame] | None:
    """A source's frames with their files, if it lists them, without reading any."""
    frames = [source.frame(index) for index in range(len(source))]
    return None if None in frames else frames


def _checking_names(
    read: Callable[[int], Mapping[str, Any]], names: dict[str, int]
) -> Callable[[int], Mapping[str, Any]]:
    """Rejects ids that are not valid file names or that are duplicated, as results would get lost.

    Args:
        read: returns a frame's sample.
        names: known frames by id; new ones are added.
    """

    def checked(index: int) -> Mapping[str, Any]:
        sample = read(index)
        name = sample["id"]
        if not name or Path(name).name != name or name.startswith("."):
            raise DataError(
                f"frame {index} has the id {name!r}, which cannot be used as a file name: ids must "
                "not contain / or start with a dot"
            )
        if names.setdefault(name, index) != index:
            raise DataError(
                f"frames {names[name]} and {index} of the source have the same id {name!r}: list "
                "each frame once"
            )
        return sample

    return checked


def _fixed(config: AdverseConfig) -> dict[str, Any]:
    """The part of the config that must stay the same in a workdir."""
    values = {
        name: value for name, value in configs.to_mapping(config).items() if name not in _FREE
    }
    values["backend"] = {"name": config.backend.name}
    values["prompts"] = {"scene": config.prompts.scene}  # the files' content is compared instead
    for name in ("teacher", "steering"):
        values[name] = {
            field: value for field, value in values[name].items() if field not in _FREE_OF_NETWORKS
        }
        # Its weights' fingerprint is compared instead.
        values[name]["checkpoint"] = values[name]["checkpoint"] is not None
    if values["source"] is not None:
        values["source"] = {
            field: value
            for field, value in values["source"].items()
            if not field.endswith(_FREE_OF_SOURCES)
        }
    return values


@contextlib.contextmanager
def _how_to_go_on(run: _Run) -> Iterator[None]:
    """After Ctrl-C, says how to resume."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        num_made = sum(made.error is None for made in run.state.images.values())
        raise KeyboardInterrupt(
            f"interrupted; {num_made} images are done and kept in {run.workdir}: run the same "
            "command to resume"
        ) from interrupt
