"""How far a job is: a bar that moves on a terminal, a line every ten seconds in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

BETWEEN_LINES = 10.0  # seconds


class Tracker:
    """Counts rows, of which `done` were done before."""

    def __init__(self, console: Console, title: str, done: int, total: int, bar: Progress | None):
        self.rows = self.failed = 0  # of this run
        self._console, self._title, self._before, self._total, self._bar = console, title, done, total, bar
        self._task = bar.add_task(title, completed=done, total=total, note="") if bar else None
        self._started = self._printed = time.perf_counter()

    def advance(self, rows: int, failed: int = 0) -> None:
        """So many more rows are done, some of them without a text."""
        self.rows, self.failed = self.rows + rows, self.failed + failed
        done, note = self._before + self.rows, f"{self.rate:.1f} rows/s"
        note += f", {self.failed} failed" if self.failed else ""
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif time.perf_counter() - self._printed >= BETWEEN_LINES:
            self._printed = time.perf_counter()
            left = (self._total - done) / max(self.rate, 1e-9)
            self._console.print(f"{self._title} {done}/{self._total}  {note}  {left:.0f} s left", highlight=False)

    @property
    def rate(self) -> float:
        """Rows a second, of this run."""
        return self.rows / max(time.perf_counter() - self._started, 1e-9)


@contextmanager
def track(title: str, done: int, total: int) -> Iterator[Tracker]:
    """Shown on standard error, where it does not stand among texts."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield Tracker(console, title, done, total, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield Tracker(console, title, done, total, bar)
