"""Ctrl-C and SIGTERM: training stops between two steps, everything else at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the run to stop. `code` is the exit status that this has by custom, 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = 128 + number


class Signals:
    """While entered, a signal raises `Interrupted`: at once, or after what is done inside `held`.

    A second signal raises at once in any case, but when the run is `ending` already.
    """

    def __init__(self) -> None:
        self.number = 0  # of the first signal that came while held
        self.cut = False  # what is held was left in the middle
        self.ending = False
        self._held = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # only there can it be done
            self._before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, signals are only noted."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.ending:  # launchers send several
            return
        if self._held and not self.number:
            self.number = number
            return
        self.cut = self._held
        raise Interrupted(number)
