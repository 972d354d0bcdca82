"""Existing adverse images: rendered, simulated, or made with another tool.

They are copied into the workdir unchanged, so that pairs of any origin get the same manifest,
cached teacher labels, structure scores and gallery. A pattern maps a clean image's path to the
adverse image's. The default matches `tools/render_scenes.py`: clear frames in DIR, and frames of a
condition with the same names in DIR/CONDITION.
"""

import contextlib
import dataclasses
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from diffdepth_jax import atomic
from diffdepth_jax.adverse.backends import Item, Outcome
from diffdepth_jax.data import io
from diffdepth_jax.errors import ConfigError, MissingFileError, UserError, naming_file

CONDITIONS = None
USES_PROMPTS = False
_PLACEHOLDERS = ("condition", "path", "name", "id", "variant")
_ANY_SUFFIX = ".*"


@dataclasses.dataclass(frozen=True)
class Config:
    """Location of the images.

    Attributes:
        batch_size: ignored.
        root: the folder that patterns, and the clean images' paths in them, are relative to.
        pattern: path of an adverse image. `{path}` is the clean image's path without suffix, and
            `{name}` its last part; `{id}` is the frame's id in the source; `{condition}` and
            `{variant}` (from 0) are also available. The suffix `.*` matches any image suffix, in
            lower or upper case. A path from / does not depend on the root.
        patterns: patterns for individual conditions, by name.
        maker: what made the images; manifests and tables call them "MAKER-CONDITION".
    """

    name: Literal["files"] = "files"
    batch_size: int = 1
    root: str = "data/rendered"
    pattern: str = "{condition}/{path}.*"
    patterns: dict[str, str] = dataclasses.field(default_factory=dict)
    maker: str = "files"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not self.maker:
            raise ValueError("maker is empty; set it to what made the images, such as 'rendered'")
        for field, pattern in [("pattern", self.pattern), *self.patterns.items()]:
            where = field if field == "pattern" else f"patterns[{field!r}]"
            used = _placeholders(pattern, where)
            if not used & {"path", "name", "id"}:
                raise ValueError(
                    f"{where} is {pattern!r}, one file for all frames; it must have {{path}}, "
                    "{name} or {id}"
                )
            if field == "pattern" and "condition" not in used:
                raise ValueError(
                    f"pattern is {pattern!r}, one file for all conditions; it must have "
                    "{condition}, or each condition needs one of `patterns`"
                )


def title(config: Config, condition: str) -> str:
    """The name of a condition's images in manifests and tables."""
    return f"{config.maker}-{condition}"


@contextlib.contextmanager
def open(config: Config, *, python: str | None, workdir: Path) -> Iterator["Session"]:
    """Opens the backend.

    Raises:
        ConfigError: if an interpreter is given.
        MissingFileError: if the folder `root` does not exist.
    """
    del workdir
    if python is not None:
        raise ConfigError(
            f"--python={python}: the files backend runs in this process, so leave it out"
        )
    root = Path(config.root).expanduser()
    with naming_file(root, "opened"):
        if not root.is_dir():
            raise MissingFileError(
                f"{root} does not exist: set backend.root to the folder that the images are in"
            )
    yield Session(config, root)


class Session:
    """See `backends.Session`."""

    def __init__(self, config: Config, root: Path):
        self._config = config
        self._root = root

    def identity(self) -> Mapping[str, Any]:
        """The patterns; moving the files does not change the identity."""
        return {"pattern": self._config.pattern, "patterns": self._config.patterns}

    def check(self, items: Sequence[Item]) -> None:
        """Rejects conditions without any files, as the pattern is then probably wrong.

        Raises:
            ConfigError: if the pattern needs something that the source does not provide, or gives
                the same file for all variants.
            MissingFileError: names the expected file.
        """
        looked_for: dict[str, str] = {}
        there = set()
        for item in items:
            path, variant = self._path(item), item.key.rpartition("/")[2]
            if variant != "0" and "variant" not in _placeholders(self._pattern(item), "pattern"):
                raise ConfigError(
                    f"{item.key}: the pattern {self._pattern(item)!r} names one file for all "
                    "variants; set variants to 1 or use {variant} in it"
                )
            looked_for.setdefault(item.condition, path)
            if item.condition not in there and self._found(path) is not None:
                there.add(item.condition)
        for condition, path in looked_for.items():
            if condition not in there:
                raise MissingFileError(
                    f"no images of the condition {condition!r} exist, the first should be "
                    f"{self._root / path}: set backend.root and backend.pattern (now "
                    f"{self._config.pattern!r}), or leave the condition out"
                )

    def generate(self, batches: Sequence[Sequence[Item]]) -> Iterator[Outcome]:
        """See `backends.Session.generate`; outcomes are in the order of the items."""
        for batch in batches:
            for item in batch:
                yield self._take(item)

    def _take(self, item: Item) -> Outcome:
        path = self._path(item)
        found = self._found(path)
        if found is None:
            return Outcome(item.key, error=f"{self._root / path} does not exist")
        try:
            image = Image.fromarray(io.read_image(found))
        except UserError as error:
            return Outcome(item.key, error=str(error))
        inside = found.is_relative_to(self._root)  # unless the pattern is an absolute path
        details: dict[str, Any] = {"file": str(found.relative_to(self._root) if inside else found)}
        if image.size != item.size[::-1]:
            details["size"] = [image.height, image.width]
            image = image.resize(item.size[::-1], Image.Resampling.LANCZOS)
        atomic.write(item.output, lambda file: image.save(file, "png", compress_level=2))
        return Outcome(item.key, details=details)

    def _pattern(self, item: Item) -> str:
        return self._config.patterns.get(item.condition, self._config.pattern)

    def _path(self, item: Item) -> str:
        """Expected path of an image, relative to the root."""
        pattern = self._pattern(item)
        frame, condition, variant = item.key.rsplit("/", 2)
        values = {"id": frame, "condition": condition, "variant": variant}
        if _placeholders(pattern, "pattern") & {"path", "name"}:
            values |= self._clean_path(item)
        return pattern.format(**values)

    def _clean_path(self, item: Item) -> dict[str, str]:
        if item.original is None:
            raise ConfigError(
                f"{item.key}: the source does not list image files, so {{path}} and {{name}} of "
                "backend.pattern are undefined: use {id}"
            )
        clean = Path(os.path.abspath(item.original)).with_suffix("")
        root = Path(os.path.abspath(self._root))
        if clean.is_relative_to(root):
            return {"path": str(clean.relative_to(root)), "name": clean.name}
        if "path" in _placeholders(self._pattern(item), "pattern"):
            raise ConfigError(
                f"{item.original} is not below {self._root}, so {{path}} of backend.pattern is "
                "undefined: set backend.root to the folder above clean and adverse images, or "
                "use {name} or {id}"
            )
        return {"name": clean.name}

    def _found(self, path: str) -> Path | None:
        """The file for a path, whose suffix may be `.*`; None if there is none."""
        stem = path.removesuffix(_ANY_SUFFIX)
        lower = io.IMAGE_SUFFIXES if stem != path else ("",)
        for suffix in dict.fromkeys((*lower, *map(str.upper, lower))):
            if (file := self._root / f"{stem}{suffix}").is_file():
                return file
        return None


def _placeholders(pattern: str, where: str) -> set[str]:
    """The placeholder names in braces.

    Raises:
        ValueError: for unclosed braces, or names in them that are not in `_PLACEHOLDERS`.
    """
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"{where} is {pattern!r}: {error}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in _PLACEHOLDERS or form or conversion):
            known = ", ".join(f"{{{each}}}" for each in _PLACEHOLDERS)
            raise ValueError(f"{where} is {pattern!r}; names in braces must be among {known}")
    return {name for _, name, *_ in parts if name is not None}
