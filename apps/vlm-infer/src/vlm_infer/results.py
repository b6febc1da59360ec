"""What a job leaves behind.

OUT                   the texts
OUT.rejected.jsonl    rows without a text, and why
OUT.summary.json      settings, counts and scores; by it the same command finds that all is done
OUT.parts/            until then, the journal
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vlm_data import Rejected
from vlm_infer.errors import InferError
from vlm_infer.journal import Done, Record, check, check_parts
from vlm_infer.output import write
from vlm_infer.rows import Rows
from vlm_infer.scoring import score
from vlm_runs.files import whole, write_whole

FIRST = 10  # rows without a text that the summary names
Settings = dict[str, Any]
Summary = dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """Where results go. out None: to the terminal."""

    out: Path | None = None
    overwrite: bool = False
    report: Path | None = None
    attention: Path | None = None

    @property
    def parts(self) -> Path:
        return self._beside("parts")

    @property
    def summary(self) -> Path:
        return self._beside("summary.json")

    @property
    def rejected(self) -> Path:
        return self._beside("rejected.jsonl")

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.name}.{ending}")

    def clear(self) -> None:
        """Remove what an earlier job left."""
        for path in (self.summary, self.rejected, self.out):  # the summary first: it says that the others are whole
            path.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)

    def before(self, settings: Settings) -> Summary | None:
        """The summary of a job with these settings, if it has been done before.

        Raises InferError if a job with others was begun or done here, or the output is another's.
        """
        if self.summary.exists() and self.out.exists():
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
            check(summary["settings"], settings, self.out)
            shutil.rmtree(self.parts, ignore_errors=True)
            return summary
        if self.out.exists() and not self.parts.exists():
            raise InferError(f"--out {self.out} exists; give another name, or --overwrite")
        check_parts(self.parts, settings)
        return None

    def finish(self, settings: Settings, rows: Rows, unread: Sequence[Rejected]) -> Summary:
        """Write everything from the journal, and remove it. unread: what was left out as the data was read.

        Raises InferError if rows are missing in the journal, or none has a text.
        """
        done = Done(self.parts, len(rows))
        if missing := len(done.missing(np.arange(len(rows)))):
            raise InferError(f"{self.parts} lacks {missing} rows; run the same command again to do these")
        failed = sorted(done.failed)
        left_out = [*unread, *(Rejected(one["source"], one["error"]) for one in done.records(failed))]
        if len(failed) == len(rows):
            self.clear()
            raise nothing(left_out)
        write(self.out, done.records(), done.references)
        if left_out:
            with whole(self.rejected) as partial, partial.open("w", encoding="utf-8", errors="replace") as file:
                file.writelines(json.dumps(record.as_dict(), ensure_ascii=False) + "\n" for record in left_out)
        if self.report is not None:
            from vlm_infer.gallery import SHOWN, write_page

            write_page(self.report, self.out.name, list(islice(done.records(), SHOWN)), rows)
        scores = score(done.records()) if done.references else {}
        summary = {
            "settings": settings,
            "texts": len(rows) - len(failed),
            "left_out": len(left_out),
            "first_left_out": [record.as_dict() for record in left_out[:FIRST]],
            "references": done.references,
            "scores": {
                name: {
                    "value": one.value,
                    "interval": one.interval,
                    "signature": one.signature,
                    "rows": len(one.per_sample),
                }
                for name, one in scores.items()
            },
        }
        write_whole(self.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        shutil.rmtree(self.parts)
        return summary


def nothing(left_out: Sequence[Rejected]) -> InferError:
    """The error of a job in which every row failed."""
    first = left_out[0]
    return InferError(f"no row could be answered; the first: {first.source}: {first.reason}")


def failures(records: Sequence[Record]) -> list[Rejected]:
    """Which of these rows have no text, and why."""
    return [Rejected(record["source"], record["error"]) for record in records if record["text"] is None]
