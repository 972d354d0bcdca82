"""Reads (strictly) and writes the JSON files that transformers keeps with weights."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from diffdepth_jax.typing import InputSpec

T = TypeVar("T")
_SHOWN = 100  # maximum length of a value in an error


class Described:
    """The content of a `config.json`; entries of the wrong type raise an error that names them.

    Args:
        content: the parsed JSON.
        path: its position in the file, for errors.
    """

    def __init__(self, content: Mapping[str, Any], path: str = ""):
        self._content, self._path = content, path

    def __bool__(self) -> bool:
        return bool(self._content)

    def part(self, name: str) -> "Described":
        """A nested mapping; empty if absent.

        Raises:
            ValueError: if it is not a mapping.
        """
        return Described(self.value(name, Mapping, {}), f"{self._path}{name}.")

    def value(self, name: str, kind: type[T] | tuple[type[T], ...], default: T) -> T:
        """An entry; `default` if it is absent or null.

        Raises:
            ValueError: if the entry has a different type.
        """
        found = self._content.get(name)
        if found is None:
            return default
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise ValueError(self._complaint(name, found))
        return found

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """An entry that is an integer or a list of integers, as a list.

        Raises:
            ValueError: if it is anything else.
        """
        found = self.value(name, (list, int), list(default))
        found = found if isinstance(found, list) else [found]
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in found):
            raise ValueError(self._complaint(name, found))
        return tuple(found)

    def mappings(self, name: str) -> list[Mapping[str, Any]]:
        """An entry that is a list of mappings; empty if absent.

        Raises:
            ValueError: if it is anything else.
        """
        found = self.value(name, list, [])
        if not all(isinstance(each, Mapping) for each in found):
            raise ValueError(self._complaint(name, found))
        return found

    def taps(self, depth: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """Blocks, counted from 0, whose outputs a backbone returns.

        transformers stores them as `out_indices` or `out_features`, and counts the input as the
        first.

        Args:
            depth: number of blocks in the backbone.
            default: used if neither entry is present.

        Raises:
            ValueError: if the entries are not such lists.
        """
        stages = self.value("out_features", list, [])
        numbers = [str(stage).removeprefix("stage") for stage in stages]
        named = tuple(int(number) for number in numbers if number.isdecimal())
        indices = self.integers("out_indices", named or tuple(tap + 1 for tap in default))
        return tuple(index % (depth + 1) - 1 for index in indices)

    def require(self, **allowed: tuple[Any, ...]) -> None:
        """Rejects entries whose values are not allowed; the first allowed value is the default.

        Raises:
            ValueError: with the entry and the allowed values.
        """
        for name, values in allowed.items():
            found = self._content.get(name, values[0])
            if found not in values:
                known = " or ".join(repr(value) for value in values)
                raise ValueError(f"{self._complaint(name, found)}; supported: {known}")

    def _complaint(self, name: str, found: Any) -> str:
        text = repr(found)
        text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return f"config.json: {self._path}{name} is {text}, which this network does not support"


def dpt_preprocessor(spec: InputSpec) -> dict[str, Any]:
    """The `preprocessor_config.json` of transformers' `DPTImageProcessor`.

    Args:
        spec: must have a size and no padding; fields that the processor does not support are
            ignored.
    """
    height, width = cast(tuple[int, int], spec.size)
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "keep_aspect_ratio": spec.keep_aspect,
        "ensure_multiple_of": spec.multiple,
        "resample": 2 if spec.interpolation == "bilinear" else 3,  # Pillow's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_pad": False,
        "size_divisor": None,
    }
