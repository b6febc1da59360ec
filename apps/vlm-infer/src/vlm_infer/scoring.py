"""Scores of texts whose references are known."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_eval import Score

LIMIT = 100_000  # rows that are scored here: metrics hold all their texts


def score(records: Iterable[dict[str, Any]]) -> dict[str, "Score"]:
    """The metrics that suit answers and those that suit captions, by name; rows without text or references left out.

    Empty if no row has both, or more than `LIMIT` have.
    """
    answers: list[dict] = []
    captions: list[dict] = []
    for record in records:
        if record["text"] is not None and record["references"]:
            (captions if record["prompt"] is None else answers).append(
                {"text": record["text"], "references": record["references"]}
            )
        if len(answers) + len(captions) > LIMIT:
            return {}
    return {**score_all(answers, answers=True), **score_all(captions, answers=False)}


def score_all(records: list[dict[str, Any]], answers: bool) -> dict[str, "Score"]:
    """Scores of rows that all have references; a row without a text counts as an empty one."""
    if not records:
        return {}
    import vlm_eval

    texts, references = [record["text"] or "" for record in records], [record["references"] for record in records]
    several = any(len(one) > 1 for one in references)
    names = ["exact_match", *(["vqa_accuracy"] if several else [])] if answers else ["bleu", "cider"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the corpus is small, which the interval shows
        return {name: getattr(vlm_eval, name)(texts, references) for name in names}
