"""One progress bar for many images, and how fast they were predicted."""

import time

from tqdm import tqdm


def bar(total: int | None, initial: int = 0, unit: str = "image") -> tqdm:
    """A progress bar on stderr, or nothing if that is not a terminal. `total` may be unknown at
    first."""
    return tqdm(total=total, initial=initial, unit=f" {unit}s", disable=None)


class Speed:
    """Counts images, and the seconds from the first use until `stop`."""

    def __init__(self, unit: str = "image") -> None:
        self._unit = unit
        self._began: float | None = None
        self._first = (0, 0.0)  # images of the first batch, and the seconds that it took
        self._images = 0
        self._seconds = 0.0

    def start(self) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def add(self, images: int) -> None:
        """Call when a batch has been predicted."""
        if not self._images:
            self._first = images, self._elapsed()
        self._images += images

    def stop(self) -> None:
        """Call when everything has been written."""
        self._seconds = self._elapsed()

    def _elapsed(self) -> float:
        assert self._began is not None, "call start first"
        return time.perf_counter() - self._began

    def describe(self) -> str | None:
        """One line for the user; None if there was no image."""
        if not self._images:
            return None
        line = f"{self._images} {self._unit}{'s' * (self._images > 1)} in {self._seconds:.1f} s"
        count, seconds = self._first
        others = self._images - count
        line += f": {self._images / self._seconds:.3g} {self._unit}s/s"
        if others and self._seconds > seconds:
            rate = others / (self._seconds - seconds)
            return f"{line}, and {rate:.3g} after the first batch, which compiles"
        return f"{line}, with compilation"
