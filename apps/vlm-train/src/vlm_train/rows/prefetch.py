"""Ahead of the model: while it works on one batch, threads prepare the next ones.

Threads, and not processes, for what takes the time (decoding, resizing) leaves Python's lock to others: nothing is
copied or left behind, whatever ends the run, and images that are broken raise where their batch is asked for.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item, Made = TypeVar("Item"), TypeVar("Made")


def prefetched(function: Callable[[Item], Made], items: Iterable[Item], workers: int) -> Iterator[Made]:
    """As `map(function, items)`, of which the next `workers` results are made ahead, each in a thread of its own.

    So at most one more than that are held; with 0 workers nothing is made ahead. `items` is iterated over in the
    caller's thread. Closing the iterator drops what was not begun.
    """
    if not workers:
        yield from map(function, items)
        return
    coming: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
