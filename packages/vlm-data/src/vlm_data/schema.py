"""One row for every source: an image, an optional prompt, and the reference texts."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import datasets

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(decode=False),  # {"path", "bytes"}: decoded late, by `vlm_data.decode`
        "prompt": datasets.Value("string"),  # None: captioning
        "references": datasets.List(datasets.Value("string")),  # empty: not answered
        "source": datasets.Value("string"),  # where the row was read, e.g. "captions.csv:12"
    }
)
_TURN = {"role": datasets.Value("string"), "text": datasets.Value("string"), "loss": datasets.Value("bool")}
# Columns that some sources have besides; all rows of one source have the same.
EXTRA_FEATURES = datasets.Features(
    {
        "pixels": datasets.Value("string"),  # hashes of the decoded pictures, parted by spaces; `verify` adds it
        "question_type": datasets.Value("string"),  # VQAv2: "what color is the"
        "answer_type": datasets.Value("string"),  # VQAv2: "yes/no", "number" or "other"
        "images": datasets.List(datasets.Image(decode=False)),  # of a conversation, in the order of its tags
        "turns": datasets.List(_TURN),  # role: "system", "user" or "assistant"; loss: whether the turn is trained on
    }
)


class DataError(ValueError):
    """The data cannot be read as asked; the message names the file and what to do."""


def listed(names: Iterable[object]) -> str:
    """Names for a message: separated by commas, cut where they get long, without what would garble a terminal."""
    text = ", ".join(map(str, names))[:200]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text) or "none"


class BadRow(ValueError):
    """One row cannot be used; a source turns it into a `Rejected` record."""


@dataclass(frozen=True)
class Rejected:
    """A row that was left out: where it was read, and why it cannot be used."""

    source: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def reject(record: Rejected, rejected: list[Rejected] | None) -> None:
    """Append the record to the list; without a list (strict), raise it as a DataError."""
    if rejected is None:
        raise DataError(f"{record.source}: {record.reason}")
    rejected.append(record)
