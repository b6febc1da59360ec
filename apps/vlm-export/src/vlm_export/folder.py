"""A folder that is written whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_export.errors import ExportError


def check_free(out: Path) -> None:
    """Raises ExportError if there is something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"--out {out} exists and is not empty; choose another folder or remove it")


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside `out`, renamed to it at the end; removed if anything goes wrong."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.is_dir():
            out.rmdir()  # empty: `check_free`
        partial.rename(out)
    except OSError as error:
        raise ExportError(f"--out {out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
