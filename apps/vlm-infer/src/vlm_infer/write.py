"""Show or write the texts."""

import csv
import json
from pathlib import Path

from datasets import Dataset
from rich.console import Console
from rich.table import Table

from vlm_data import Rejected

COLUMNS = ("id", "image", "prompt", "text")


def show(rows: Dataset, texts: list[str]) -> None:
    """One text alone as it is; several as a table."""
    if len(texts) == 1:
        print(texts[0])
        return
    table = Table("image", "question", "text")
    for row, text in zip(rows, texts, strict=True):
        table.add_row(_name(row), row["prompt"] or "", text)
    Console().print(table)


def write(out: Path, rows: Dataset, texts: list[str], rejected: list[Rejected]) -> None:
    """A CSV or JSONL file, whole or not at all."""
    records = [
        {"id": row["id"], "image": row["image"]["path"], "prompt": row["prompt"], "text": text}
        for row, text in zip(rows, texts, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        if out.suffix == ".csv":
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(records)
        else:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    partial.replace(out)
    print(f"{len(records)} texts in {out}" + (f", {len(rejected)} rows skipped" if rejected else ""))


def _name(row: dict) -> str:
    return Path(row["image"]["path"]).name
