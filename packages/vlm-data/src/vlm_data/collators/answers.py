"""Which of a row's reference answers is trained on, where several people answered."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vlm_data.schema import DataError

CHOICES = ("frequent", "sample")


def answer_of(row: Mapping[str, Any], choice: str, seed: int, epoch: int) -> str:
    """The answer given most often, the first among equals ("frequent"); or one drawn by its frequency ("sample").

    What is drawn is a function of the seed, the row's id and the epoch, so that a run that goes on draws as before.
    Raises DataError for a row without references.
    """
    references = row["references"]
    if not references:
        raise DataError(f"{row['source']}: no answer or caption to train on")
    if choice == "frequent":
        return Counter(references).most_common(1)[0][0]
    draw = int.from_bytes(hashlib.sha256(f"{seed} {epoch} {row['id']}".encode()).digest()[:8])
    return references[draw % len(references)]
