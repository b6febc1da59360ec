"""One row for every source: an image, an optional prompt, and the reference texts."""

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


class DataError(ValueError):
    """The data cannot be read as asked; the message names the file and what to do."""


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
