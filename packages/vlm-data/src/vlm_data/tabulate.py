"""Rows to an Arrow table in small batches, so that a million of them never exist as Python objects at once."""

import hashlib
from collections.abc import Iterable

import datasets
import pyarrow as pa

from vlm_data.schema import EXTRA_FEATURES, FEATURES, Rejected, reject

_ROWS, _BYTES = 5_000, 1 << 28  # a batch's limits; Arrow's own is 2 GiB of images


def tabulate(items: Iterable[dict | Rejected], rejected: list[Rejected] | None) -> datasets.Dataset | None:
    """A data set of the rows; what is rejected goes to the list (None: raises DataError). None if there was no item.

    The columns are `FEATURES` and those of `EXTRA_FEATURES` that the first row has; a row that has others is rejected.
    """
    batches, rows, held, empty = [], [], 0, True
    digest = hashlib.sha256()  # of what is in it, which datasets would find by pickling all of it once more
    features = FEATURES
    for item in items:
        empty = False
        if isinstance(item, Rejected):
            reject(item, rejected)
            continue
        extra = {name: kind for name, kind in EXTRA_FEATURES.items() if name in item}
        if not batches and not rows:
            features = datasets.Features({**FEATURES, **extra})
        elif len(features) != len(FEATURES) + len(extra) or not features.keys() >= extra.keys():
            kinds = "a conversation among rows that are none", "no conversation, and others are"
            reason = f"{kinds['turns' not in item]}; keep the two in data sets of their own"
            reject(Rejected(item["source"], reason), rejected)
            continue
        rows.append(item)
        held += len(item["image"]["bytes"] or b"")
        if len(rows) == _ROWS or held > _BYTES:
            batches.append(_batch(rows, features, rejected))
            digest.update(batches[-1].serialize())
            rows, held = [], 0
    if empty:
        return None
    batches.append(_batch(rows, features, rejected))
    digest.update(batches[-1].serialize())
    table = pa.Table.from_batches(batches, schema=features.arrow_schema)
    return datasets.Dataset(table, fingerprint=digest.hexdigest()[:16])


def _batch(rows: list[dict], features: datasets.Features, rejected: list[Rejected] | None) -> pa.RecordBatch:
    schema = features.arrow_schema
    try:
        return pa.RecordBatch.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:  # JSON's "\ud800", or a file name that is not UTF-8
        good = []
        for row in rows:
            try:
                pa.RecordBatch.from_pylist([row], schema=schema)
                good.append(row)
            except UnicodeEncodeError as error:
                source = row["source"].encode("utf-8", "replace").decode()
                reject(Rejected(source, f"a text or name is not valid Unicode ({error.reason})"), rejected)
        return pa.RecordBatch.from_pylist(good, schema=schema)
