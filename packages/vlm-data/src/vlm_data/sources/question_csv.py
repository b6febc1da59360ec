"""Questions in a CSV: an image column, `question`, and `answer` where the answers are known; maybe `caption`."""

from collections.abc import Iterator

from vlm_data.csv_table import CsvTable, filled
from vlm_data.request import Request
from vlm_data.schema import DataError, Rejected


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each question; its references are the answer, or nothing where there is none.

    A record without a question may have a caption.
    """
    table = CsvTable(asked.path, asked.columns)
    if table.header is None:
        raise DataError(f"{asked.path}: no header; needed as its first line: image_name,question,answer")
    return table.rows(asked.image_dir, "question", _texts)


def _texts(fields: dict[str, str]) -> tuple[str | None, list[str]]:
    if not fields["question"] and fields.get("caption"):
        return None, [fields["caption"]]
    answer = fields.get("answer")
    return filled(fields, "question"), [answer] if answer else []
