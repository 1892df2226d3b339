"""How far a long piece of work is: a bar on a terminal, elsewhere a line now and then."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger("spanbert_fast")
Item = TypeVar("Item")

SECONDS = 30.0  # between two lines


class Meter:
    """Counts what is done of a piece of work, and shows it where the package's log lines are shown.

    Args:
        what: the work, in a word or two.
        total: how much there is; None where nobody knows.
        unit: what is counted.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = ""):
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._began = self._told = time.monotonic()
        self._bar = None
        self._is_shown = logger.isEnabledFor(logging.INFO)
        if self._is_shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                desc=what,
                unit=f" {unit}" if unit else "",
                dynamic_ncols=True,
                leave=False,
            )

    def add(self, count: int = 1) -> None:
        """So much more is done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._is_shown and time.monotonic() - self._told >= SECONDS:
            self._told = time.monotonic()
            logger.info("%s: %s", self.what, self._line())

    def close(self) -> None:
        """Nothing more is done."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if not self.total:
            return f"{self.done:,}{unit}"
        seconds = (time.monotonic() - self._began) * (self.total / max(self.done, 1) - 1)
        return f"{self.done:,} of {self.total:,}{unit}, {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Minutes and seconds, for a person."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def metered(
    items: Iterable[Item], what: str, total: int | None = None, unit: str = ""
) -> Iterator[Item]:
    """The items, counted as they are taken."""
    with Meter(what, total, unit) as meter:
        for item in items:
            yield item
            meter.add()
