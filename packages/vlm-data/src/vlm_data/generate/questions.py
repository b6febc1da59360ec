"""A question with its one-word answer and its type."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

TYPES = ("color", "material", "shape", "pattern", "count", "yes/no", "other")
# What a question may begin with. A model that slips in its lines otherwise asks "Rectangular What is this?"
_OPENINGS = re.compile(
    r"(what|which|how|who|where|when|why|is|are|was|were|do|does|did|can|could|has|have|in|on|of)\b", re.IGNORECASE
)
_TYPE_WORDS = {
    "color": r"colou?rs?\b",
    "material": r"\bmaterial|\bmade (of|from|out)|\bfabric",
    "shape": r"\bshaped?\b",
    "pattern": r"\bpattern",
}


@dataclass(frozen=True)
class Question:
    """image_name: the image's file relative to the image folder."""

    image_name: str
    question: str
    answer: str
    question_type: str


class FormatError(ValueError):
    """A question or an answer that cannot be used; the text is the reason, short enough to count by."""


def checked(image: str, question: object, answer: object) -> Question:
    """The question with its type and its answer in lower case. Raises FormatError."""
    if not isinstance(question, str) or not isinstance(answer, str | int) or isinstance(answer, bool):
        raise FormatError("not texts")
    question = " ".join(question.split())
    if not question.endswith("?") or not 2 < len(question.split()) <= 30 or not _OPENINGS.match(question):
        raise FormatError("not a question")
    word = str(answer).strip().strip(".,;:!\"'").lower()
    if not word:
        raise FormatError("empty answer")
    if not re.fullmatch(r"\w[\w'-]*", word):
        raise FormatError("answer of several words")
    return Question(image, question, word, question_type(question, word))


def question_type(question: str, answer: str) -> str:
    """One of TYPES, by the answer where it tells, else by the words of the question."""
    if answer in ("yes", "no"):
        return "yes/no"
    if answer.isdecimal():
        return "count"
    return next((kind for kind, words in _TYPE_WORDS.items() if re.search(words, question.lower())), "other")


def report(questions: Iterable[Question]) -> dict[str, dict]:
    """By type: how many questions, how many distinct answers, the most frequent ones, and the share of the first.

    The share is what a model scores that always gives this answer, without a look at the image.
    """
    by_type: dict[str, Counter[str]] = {}
    for question in questions:
        by_type.setdefault(question.question_type, Counter())[question.answer] += 1
    return {
        kind: {
            "questions": answers.total(),
            "answers": len(answers),
            "most_frequent": dict(answers.most_common(10)),
            "share_of_first": round(answers.most_common(1)[0][1] / answers.total(), 4),
        }
        for kind, answers in sorted(by_type.items(), key=lambda pair: -pair[1].total())
    }


def write_questions(path: str | os.PathLike, questions: Iterable[Question]) -> None:
    """A CSV with the columns image_name, question, answer, question_type; whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([field.name for field in fields(Question)])
        table.writerows(map(astuple, questions))
    partial.replace(path)


def write_report(path: str | os.PathLike, content: dict) -> None:
    Path(path).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
