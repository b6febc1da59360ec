"""Question-answer pairs in the reply of a model: JSON, as asked for, or lines `Question: ...` and `Answer: ...`."""

import json
import re
from typing import Any

from vlm_data.generate.questions import FormatError

_LABEL = re.compile(r"^[\W\d_]*(question|answer|q|a)[\W\d_]*?:\W*?(?=\w|$)", flags=re.IGNORECASE)


def pairs_in(reply: str) -> list[tuple[Any, Any]]:
    """(question, answer) as the model wrote them. Raises FormatError if there is none."""
    pairs = _json_pairs(reply) or _line_pairs(reply)
    if not pairs:
        raise FormatError("reply without pairs")
    return pairs


def _json_pairs(reply: str) -> list[tuple[Any, Any]]:
    for first, last in ("[]", "{}"):  # between other text and a fence of backticks
        try:
            found = json.loads(reply[reply.index(first) : reply.rindex(last) + 1])
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            found = next((value for value in found.values() if isinstance(value, list)), [found])
        return [(item.get("question"), item.get("answer")) for item in found if isinstance(item, dict)]
    return []


def _line_pairs(reply: str) -> list[tuple[Any, Any]]:
    pairs, question = [], None
    for line in reply.splitlines():
        label = _LABEL.match(line)
        if label is None:
            continue
        text = line[label.end() :].strip(" *`")
        if label[1][0].lower() == "q":
            question = text
        elif question is not None:
            pairs.append((question, text))
            question = None
    return pairs
