"""A page of the texts beside their images."""

import tempfile
from pathlib import Path
from typing import Any

from vlm_eval import report
from vlm_infer.rows import Rows
from vlm_infer.scoring import score_all
from vlm_runs.files import write_whole

SHOWN = 2000  # rows on a page, at most


def write_page(path: Path, title: str, records: list[dict[str, Any]], rows: Rows) -> None:
    """HTML that needs no other file. With references of all these rows there are scores of them on it too."""
    scores = {}
    if all(record["references"] for record in records):
        scores = score_all(records, answers=any(record["prompt"] is not None for record in records))
    texts, failed = [record["text"] or "" for record in records], [record["error"] for record in records]
    with tempfile.TemporaryDirectory() as folder:
        shown = [
            report.Row(record["id"], record["references"], record["prompt"], _picture(record, rows, Path(folder)))
            for record in records
        ]
        run = report.Run(title, texts, failed, scores)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, report.page(title, shown, [run], folder=path.resolve().parent))


def _picture(record: dict[str, Any], rows: Rows, folder: Path) -> str | None:
    """The path of a row's image; one that comes as bytes is put into the folder."""
    if record["image"] is not None:
        return record["image"]
    (row,) = rows.read([record["row"]])
    if not isinstance(row, dict):
        return None
    path = folder / str(record["row"])
    path.write_bytes(row["image"]["bytes"])
    return str(path)
