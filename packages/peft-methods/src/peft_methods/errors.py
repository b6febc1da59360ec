"""Errors about adapters and their files, and the one check of names that every loading goes through."""

import difflib
from collections.abc import Collection


class AdapterError(ValueError):
    """An adapter, or a folder with one, that does not fit or cannot be used as asked; the message says the fix."""


def check_keys(given: Collection[str], expected: Collection[str], where: str) -> None:
    """Raise AdapterError, with the nearest expected names, unless both hold the same names."""
    unknown = sorted(set(given) - set(expected))
    missing = sorted(set(expected) - set(given))
    problems = []
    if unknown:
        problems.append(f"{len(unknown)} keys that the model has no place for: " + ", ".join(
            f"{key!r} (nearest: {', '.join(difflib.get_close_matches(key, expected, 2, 0.0)) or 'none'})"
            for key in unknown[:3]) + _more(unknown))  # fmt: skip
    if missing:
        problems.append(f"{len(missing)} keys are missing: {', '.join(map(repr, missing[:3]))}{_more(missing)}")
    if problems:
        raise AdapterError(f"{where}: {'; '.join(problems)}; strict=False takes what fits")


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 3} more" if len(keys) > 3 else ""
