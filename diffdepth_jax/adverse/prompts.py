"""The prompt bank: `prompts.toml` and user files.

A prompt only depends on the bank, the seed, the frame's id, the condition and the variant, not on
what else is generated.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffdepth_jax.errors import ConfigError, did_you_mean, naming_file

SCENE = "scene"  # the condition of clean images generated from prompts
_SLOT = re.compile(r"\{(\w+)\}")

# Texts to draw from, with weights.
Words = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What an image should show, and what it should not."""

    text: str
    negative: str


@dataclasses.dataclass(frozen=True)
class Condition:
    """A table `[conditions.NAME]`."""

    templates: Words
    negative: str
    words: Mapping[str, Words]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A table `[scenes.NAME]`; `per_frame` lists slots that are drawn once per frame."""

    words: Mapping[str, Words]
    per_frame: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bank:
    """Everything that prompts are drawn from.

    Attributes:
        conditions, scenes: tables by name.
        sources: scene for each source name, and for `default`.
        negative: what no image should show.
    """

    conditions: Mapping[str, Condition]
    scenes: Mapping[str, Scene]
    sources: Mapping[str, str]
    negative: str

    def scene_of(self, source: str | None, chosen: str | None = None) -> str:
        """The scene whose words are used for a source.

        Raises:
            ConfigError: if there is no scene `chosen`.
        """
        name = chosen or self.sources.get(source or "", self.sources.get("default", ""))
        if name not in self.scenes:
            raise ConfigError(f"prompts.scene is {name!r}{did_you_mean(name, self.scenes)}")
        return name

    def check(self, conditions: Sequence[str], scene: str) -> None:
        """Rejects conditions that are not in the bank, or lack words for a scene.

        Raises:
            ConfigError: names the condition, or the slot without words.
        """
        for name in conditions:
            if name not in self.conditions:
                raise ConfigError(
                    f"no condition named {name!r}{did_you_mean(name, self.conditions)}"
                )
            for slot in self._slots(name):
                if slot not in self._words(name, scene):
                    raise ConfigError(
                        f"the prompts of {name!r} use {{{slot}}}, but neither the condition nor "
                        f"the scene {scene!r} has words for it: use another prompts.scene, or add "
                        "words in a file of prompts.files"
                    )

    def draw(self, seed: int, frame: str, condition: str, variant: int, scene: str) -> Prompt:
        """The prompt of an image.

        Args:
            seed: the run's seed.
            frame: id of the clean image.
            condition, scene: names that `check` accepted.
            variant: index of the image, for this frame and condition.
        """
        table, words = self.conditions[condition], self._words(condition, scene)
        shared = self.scenes[scene].per_frame
        template = _pick(table.templates, (seed, frame, condition, variant))

        def word(match: re.Match[str]) -> str:
            slot = match[1]
            # A condition's words take precedence over the scene's.
            once = slot in shared and slot not in table.words
            where = (seed, frame) if once else (seed, frame, condition, variant)
            return _pick(words[slot], (*where, slot))

        text = _SLOT.sub(word, template)
        negative = ", ".join(part for part in (table.negative, self.negative) if part)
        return Prompt(text[:1].upper() + text[1:], negative)

    def count(self, condition: str, scene: str) -> int:
        """Number of possible prompts; words may repeat across prompts."""
        words = self._words(condition, scene)
        return sum(
            math.prod(len(words[slot]) for slot in dict.fromkeys(_SLOT.findall(text)))
            for text, _ in self.conditions[condition].templates
        )

    def fingerprint(self) -> str:
        """A hash of everything that affects prompts, except the arguments of `draw`."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _words(self, condition: str, scene: str) -> dict[str, Words]:
        return {**self.scenes[scene].words, **self.conditions[condition].words}

    def _slots(self, condition: str) -> list[str]:
        texts = (text for text, _ in self.conditions[condition].templates)
        return list(dict.fromkeys(slot for text in texts for slot in _SLOT.findall(text)))


def noise_seed(seed: int, frame: str, condition: str, variant: int) -> int:
    """The seed of an image's noise and strengths, 0 to 2**63 - 1."""
    return int.from_bytes(_digest((seed, frame, condition, variant, "noise"))[:8]) >> 1


def read(files: Sequence[str] = ()) -> Bank:
    """The bank in `prompts.toml`, updated by the tables in files.

    Raises:
        FileError: if a file cannot be read.
        ConfigError: if a file is not valid TOML, or has tables that `prompts.toml` does not have.
    """
    text = importlib.resources.files(__package__).joinpath("prompts.toml").read_text("utf-8")
    table = tomllib.loads(text)
    for name in files:
        table = _overlay(table, _read_file(Path(name).expanduser()))
        _bank(table, name)  # so that errors name this file
    return _bank(table, "prompts.toml")


def _read_file(path: Path) -> dict[str, Any]:
    with naming_file(path, "read"):
        contents = path.read_bytes()
    try:
        return tomllib.loads(contents.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _overlay(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in other.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _overlay(result[key], value) if nested else value
    return result


def _bank(table: Mapping[str, Any], file: str) -> Bank:
    known = [field.name for field in dataclasses.fields(Bank)]
    for key in table:
        if key not in known:
            raise ConfigError(f"{file}: no table named {key!r}{did_you_mean(key, known)}")
    conditions = {
        name: Condition(
            _entries(part.get("templates"), f"{file}: conditions.{name}.templates"),
            _text(part.get("negative", ""), f"{file}: conditions.{name}.negative"),
            _word_lists(part, f"{file}: conditions.{name}"),
        )
        for name, part in _tables(table, "conditions", ("templates", "negative", "words"), file)
    }
    scenes = {
        name: Scene(
            _word_lists(part, f"{file}: scenes.{name}"),
            tuple(
                _text(slot, f"{file}: scenes.{name}.per_frame")
                for slot in part.get("per_frame", ())
            ),
        )
        for name, part in _tables(table, "scenes", ("words", "per_frame"), file)
    }
    sources = {
        name: _text(scene, f"{file}: sources.{name}")
        for name, scene in table.get("sources", {}).items()
    }
    return Bank(conditions, scenes, sources, _text(table.get("negative", ""), f"{file}: negative"))


def _tables(
    table: Mapping[str, Any], kind: str, fields: Sequence[str], file: str
) -> list[tuple[str, Mapping[str, Any]]]:
    found = table.get(kind, {})
    for name, part in found.items():
        where = f"{file}: {kind}.{name}"
        # names become folder names
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
            raise ConfigError(f"{where}: names may only contain letters, digits, - and _")
        if not isinstance(part, Mapping):
            raise ConfigError(f"{where} is {part!r}; it must be a table [{kind}.{name}]")
        for key in part:
            if key not in fields:
                raise ConfigError(
                    f"{where} has the unknown field {key!r}{did_you_mean(key, fields)}"
                )
    return list(found.items())


def _word_lists(part: Mapping[str, Any], where: str) -> dict[str, Words]:
    words = part.get("words", {})
    if not isinstance(words, Mapping):
        raise ConfigError(f"{where}.words is {words!r}; it must be a table of lists")
    return {slot: _entries(texts, f"{where}.words.{slot}") for slot, texts in words.items()}


def _entries(entries: Any, where: str) -> Words:
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where} is {entries!r}; it must be a non-empty list of texts")
    found = []
    for entry in entries:
        pair = entry if isinstance(entry, Mapping) else {"text": entry}
        weight = pair.get("weight", 1)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if set(pair) - {"text", "weight"} or not number or not 0 <= weight < math.inf:
            raise ConfigError(
                f'{where} has {entry!r}; an entry must be "text" or {{text = "...", weight = 2}}'
            )
        found.append((_text(pair.get("text"), where), float(weight)))
    if not any(weight for _, weight in found):
        raise ConfigError(f"{where}: all weights are 0; at least one must be positive")
    return tuple(found)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {value!r}; it must be a string")
    return value


def _pick(words: Words, place: tuple[Any, ...]) -> str:
    """A word, drawn by weight using a hash of its position."""
    position = int.from_bytes(_digest(place)[:8]) / 2**64 * sum(weight for _, weight in words)
    for text, weight in words:
        position -= weight
        if position < 0:
            return text
    return next(text for text, weight in reversed(words) if weight)


def _digest(place: tuple[Any, ...]) -> bytes:
    # Python's random numbers and hashes may change between versions or runs.
    return hashlib.sha256(json.dumps(place).encode()).digest()
