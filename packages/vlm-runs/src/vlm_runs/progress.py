"""Progress that a person can watch and a log file can hold."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10


class Tracker:
    """Shows how far a task of `total` units is: a live bar on a terminal, else a line every ten seconds.

    before: units that were done already, which took no time of this task.
    """

    def __init__(self, console: Console, title: str, total: int, before: int, bar: Progress | None):
        self.console, self.title, self.total, self.before, self.bar = console, title, total, before, bar
        self.task = bar.add_task(title, total=total, completed=before, note="") if bar else None
        self.start = self.printed = time.perf_counter()

    def at(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report that `done` units are finished; `note` stands beside the bar."""
        self.total = total or self.total
        if self.bar:
            self.bar.update(self.task, completed=done, total=self.total, note=note)
            return
        now = time.perf_counter()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = now
            left = (now - self.start) / max(done - self.before, 1) * (self.total - done)
            self.console.print(f"{self.title} {done}/{self.total}  {note}  {left:.0f} s left", highlight=False)


@contextmanager
def track(console: Console, title: str, total: int, before: int = 0) -> Iterator[Tracker]:
    """A `Tracker` for one task."""
    if not console.is_terminal:
        yield Tracker(console, title, total, before, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield Tracker(console, title, total, before, bar)
