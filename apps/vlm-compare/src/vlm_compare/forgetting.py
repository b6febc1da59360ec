"""Forgetting: how the trained models do on other data, beside how their base model does there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from rich.console import Console

import vlm_data
import vlm_models
from vlm_compare.cells import Cell
from vlm_runs.adapters import put_on
from vlm_train.engine.evaluate import evaluate
from vlm_train.options.config import TrainConfig
from vlm_train.rundir import RunDir

BASE = "base"


def measure(cells: dict[Cell, TrainConfig], runs: Path, folder: Path, data: str, rows: int, console: Console) -> None:
    """Write `FOLDER/NAME.json` for the base model and each finished cell: the value of each row, by metric.

    What is there already for the same rows is kept.
    """
    config = next(iter(cells.values()))
    other = _rows_of(data, rows)
    collate = vlm = None
    folder.mkdir(parents=True, exist_ok=True)
    for cell in (None, *cells):
        name = cell.name if cell else BASE
        done = folder / f"{name}.json"
        if done.exists() and json.loads(done.read_text(encoding="utf-8"))["ids"] == other["id"][:]:
            continue
        if cell is not None and not (runs / name / "adapter").is_dir():
            continue
        if vlm is None:
            plan = (config.model, config.quantization, config.device, config.dtype, config.revision)
            vlm = vlm_models.load(*plan)
            vlm_data.limit_image_tokens(vlm.processor, config.max_image_tokens, other["image"])
            collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
        with _trained(vlm, cell, runs) as model:
            found = evaluate(model, collate, other, console, f"forgetting: {name}")
        values = {metric: score.per_sample for metric, score in found.scores.items() if found.rows[metric]}
        RunDir(folder).write_json(done.name, {"ids": other["id"][:], "values": values, "data": data})


def _rows_of(data: str, rows: int) -> Dataset:
    """Rows with references; of the test or validation part, where there are parts."""
    parts = vlm_data.splits(data)
    found = vlm_data.open(data, split=next(iter(parts[1:]), None) if parts else None, seed=0)
    found = found.select([index for index, texts in enumerate(found["references"]) if texts])
    if not len(found):
        raise vlm_data.DataError(f"--forgetting {data}: none of its rows has a reference")
    return found.shuffle(seed=0).select(range(rows)) if 0 < rows < len(found) else found


@contextmanager
def _trained(vlm: vlm_models.VLM, cell: Cell | None, runs: Path) -> Iterator[vlm_models.VLM]:
    """The model with the adapter of a cell on it; as it was, afterwards."""
    if cell is None:
        yield vlm
    else:
        loaded = put_on(vlm.model, runs / cell.name / "adapter")
        yield vlm
        for attachment in reversed(loaded):
            attachment.detach()
