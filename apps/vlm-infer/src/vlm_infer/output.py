"""Texts shown, or written as tables and as the result files of COCO's and VQA's official tools."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlm_infer.errors import InferError
from vlm_infer.rows import Row, Rows
from vlm_runs.files import whole

Record = dict[str, Any]
COLUMNS = ("id", "image", "prompt", "text", "logprob", "seconds")
AT_ONCE = 1000  # rows of a group in a Parquet file


def show(records: list[Record]) -> None:
    """One text alone as it is; several as a table."""
    if len(records) == 1:
        print(records[0]["text"])
        return
    table = Table("image", "question", "text")
    for record in records:
        table.add_row(Path(record["image"] or record["id"]).name, record["prompt"] or "", record["text"])
    Console().print(table)


def write(out: Path, records: Iterable[Record], references: bool) -> None:
    """A file in the format of its ending, whole or not at all.

    references: whether there is a column of them. Rows without a text are left out; in result files (.json), which
    must be complete, they have an empty one.
    """
    with whole(out) as partial:
        WRITERS[out.suffix](partial, records, (*COLUMNS, "references") if references else COLUMNS)


def _csv(path: Path, records: Iterable[Record], columns: tuple[str, ...]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for record in _with_text(records):
            # References as a JSON list, which vlm-score reads.
            cells = (record[name] for name in columns)
            writer.writerow(
                [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in cells]
            )


def _jsonl(path: Path, records: Iterable[Record], columns: tuple[str, ...]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in _with_text(records):
            file.write(json.dumps({name: record[name] for name in columns}, ensure_ascii=False) + "\n")


def _parquet(path: Path, records: Iterable[Record], columns: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"logprob": pa.float64(), "seconds": pa.float64(), "references": pa.list_(pa.string())}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    with pq.ParquetWriter(path, schema) as writer:
        group: list[Record] = []
        for record in _with_text(records):
            group.append({name: record[name] for name in columns})
            if len(group) == AT_ONCE:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))


def _results(path: Path, records: Iterable[Record], columns: tuple[str, ...]) -> None:
    with path.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for record in records:
            name = "answer" if "question_id" in record["official"] else "caption"
            entry = {**record["official"], name: record["text"] or ""}
            file.write(separator + json.dumps(entry, ensure_ascii=False))
            separator = ",\n"
        file.write("\n]\n")


WRITERS: dict[str, Callable[[Path, Iterable[Record], tuple[str, ...]], None]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".json": _results,
}


def official(row: Row) -> dict[str, int] | None:
    """The id by which COCO's or VQA's tool knows a row: of the question, or of the image; None if there is none."""
    if match := re.search(r": (question|image) (\d+)$", row["source"]):
        return {f"{match[1]}_id": int(match[2])}
    picture = row["image"]["path"] and Path(row["image"]["path"]).name
    if picture and row["id"].endswith(picture) and (match := re.search(r"(\d+)\.\w+$", picture)):
        return {"image_id": int(match[1])}  # COCO_val2014_000000000042.jpg
    return None


def check_official(out: Path, rows: Rows) -> None:
    """Raises InferError unless every row has such an id, and no other row the same."""
    seen: dict[tuple, str] = {}
    for row in rows.read(range(len(rows))):
        known = official(row) if isinstance(row, dict) else None
        source = row["source"] if isinstance(row, dict) else row.source
        if known is None:
            raise InferError(
                f"--out {out}: {source} has no id for COCO's or VQA's tools; give one of their files with --data, "
                "images that are named by their numbers, or another --out (.csv, .jsonl, .parquet)"
            )
        if (key := tuple(known.items())) in seen:
            raise InferError(f"--out {out}: {source} and {seen[key]} have the same {key[0][0]}, {key[0][1]}")
        seen[key] = source


def _with_text(records: Iterable[Record]) -> Iterator[Record]:
    return (record for record in records if record["text"] is not None)
