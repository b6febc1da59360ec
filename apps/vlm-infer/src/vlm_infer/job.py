"""Rows through a model: each of them once, and those that fail once more at the end."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from rich.console import Console

from vlm_data import Rejected
from vlm_infer.batches import batches
from vlm_infer.engines import Engine
from vlm_infer.generation import Outcome
from vlm_infer.journal import Done, Journal, Record
from vlm_infer.output import official
from vlm_infer.rows import Row, Rows
from vlm_runs.progress import track

Keep = Callable[[list[Record]], None]


def in_memory(engine: Engine, rows: Rows) -> list[Record]:
    """The records of all rows, in their order."""
    records: dict[int, Record] = {}

    def keep(some: list[Record]) -> None:
        records.update((record["row"], record) for record in some)

    _answer(engine, rows, range(len(rows)), keep)
    _answer(engine, rows, [row for row, record in records.items() if record["text"] is None], keep, tries=2)
    return [records[row] for row in sorted(records)]


def on_disk(make_engine: Callable[[], Engine], rows: Rows, mine: np.ndarray, journal: Journal) -> float:
    """Put the records of the rows at `mine` into the journal; returns the rows a second, 0 if nothing was left to do.

    Those that are in it already are left out. If all are, the model is not even loaded. make_engine: gives the same one
    every time.
    """
    rate = 0.0
    if len(Done(journal.folder, len(rows)).missing(mine)):
        make_engine()  # before the journal begins: a model that cannot be loaded leaves nothing behind
    with journal:
        todo = Done(journal.folder, len(rows)).missing(mine)
        if len(todo):
            rate = _answer(make_engine(), rows, todo, journal.add, before=len(mine) - len(todo))
            journal.sync()
        done = Done(journal.folder, len(rows))
        again = np.intersect1d(mine, sorted(done.failed - done.retried)).astype(np.int64)
        if len(again):
            _answer(make_engine(), rows, again, journal.add, tries=2)
    return rate


def _answer(engine: Engine, rows: Rows, positions: Sequence[int], keep: Keep, tries: int = 1, before: int = 0) -> float:
    """Give `keep` a record of each of these rows, some at a time; returns the rows a second.

    before: rows that were done before, for people to see.
    """
    title = "generating" if tries == 1 else "trying failed rows again"
    console = Console(file=sys.stderr)  # where it does not stand among texts
    started, done, failed = time.perf_counter(), 0, 0

    def rate() -> float:
        return done / max(time.perf_counter() - started, 1e-9)

    with track(console, title, before + len(positions), before) as progress:

        def keep_all(records: list[Record]) -> None:
            nonlocal done, failed
            keep(records)
            done += len(records)
            failed += sum(record["text"] is None for record in records)
            progress.at(before + done, note=f"{rate():.1f} rows/s" + (f", {failed} failed" if failed else ""))

        def reject(position: int, bad: Rejected) -> None:
            row = {"id": bad.source, "source": bad.source, "image": {"path": None}, "prompt": None, "references": []}
            keep_all([_record(position, row, Outcome(None, None, 0.0, bad.reason), tries)])

        for batch, outcomes in engine.map(batches(rows, positions, engine.batch_size, reject)):
            answered = zip(batch.positions, batch.rows, outcomes, strict=True)
            keep_all([_record(position, row, outcome, tries) for position, row, outcome in answered])
    return rate()


def _record(position: int, row: Row, outcome: Outcome, tries: int) -> Record:
    return {
        "row": position,
        "id": row["id"],
        "image": row["image"]["path"],
        "prompt": row["prompt"],
        "references": row["references"],
        "official": official(row),
        "source": row["source"],
        "tries": tries,
        **asdict(outcome),
    }
