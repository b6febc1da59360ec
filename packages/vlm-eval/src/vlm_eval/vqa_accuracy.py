"""VQA accuracy (Antol et al., 2015): an answer is fully right if three of the other annotators gave it.

Each of the n annotators is left out in turn; with k of the others agreeing with the prediction, that turn scores
min(1, k / 3), and the row scores the mean of its turns. Ten answers of which 1, 2, 3, 4 agree give .3, .6, .9, 1.

With fewer than four answers three others do not exist, and even a unanimous answer would not reach 1.
There the 3 becomes n - 1, "all others", and the row scores exactly the share of answers that agree; for n = 4 the
official formula is that share too, so the two rules meet. For n = 1 the share is normalised exact match.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from vlm_eval.rows import check_rows
from vlm_eval.score import Score, mean_score, signature
from vlm_eval.vqa_normalize import clean, normalize

MODES = ("always", "official")


def vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    mode: str = "always",
    question_types: Sequence[str] | None = None,
    answer_types: Sequence[str] | None = None,
) -> Score:
    """VQA accuracy, 0 to 1 (the challenge prints it times 100).

    Args:
        predictions: n answers.
        references: the human answers of each row, ten in VQAv2; their order does not matter.
        mode: `"always"` normalises every row. `"official"` leaves rows as they are where several annotators all gave
            the same string, as the challenge's code does: "Yes." is then wrong if all ten said "yes".
        question_types: n labels; the details then hold `per_question_type`, {label: {"accuracy", "n"}}.
        answer_types: the same for `per_answer_type`.

    Returns:
        A score whose signature names the rules that applied: `leave-one-out` (n >= 4 answers), `share` (2 or 3),
        `exact-match` (1).

    Raises:
        ValueError: unknown `mode`, labels of another length, or see `rows.check_rows`.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
    predictions, references = check_rows(predictions, references)
    per_sample = [_row_accuracy(p, row, mode) for p, row in zip(predictions, references, strict=True)]
    details = {}
    for name, labels in (("question_type", question_types), ("answer_type", answer_types)):
        if labels is not None:
            if len(labels) != len(per_sample):
                raise ValueError(f"{len(labels)} {name}s but {len(per_sample)} predictions: give one entry a row")
            details[f"per_{name}"] = _table(labels, per_sample)
    rules = "+".join(sorted({_rule(len(row)) for row in references}))
    return mean_score(per_sample, signature("vqa_accuracy", references, mode=mode, rule=rules), details)


def _row_accuracy(prediction: str, answers: list[str], mode: str) -> float:
    n = len(answers)
    prediction, *answers = map(clean, (prediction, *answers))
    if mode == "always" or n == 1 or len(set(answers)) > 1:
        prediction, *answers = map(normalize, (prediction, *answers))
    agree = answers.count(prediction)
    needed = min(3, n - 1)
    if needed == 0:
        return float(agree)
    # A turn that leaves out one of the agreeing annotators has one agreeing annotator less.
    turns = agree * min(needed, agree - 1) + (n - agree) * min(needed, agree)
    return turns / (n * needed)


def _rule(n: int) -> str:
    return "exact-match" if n == 1 else "share" if n < 4 else "leave-one-out"


def _table(labels: Sequence[str], per_sample: list[float]) -> dict[str, dict[str, float]]:
    groups = defaultdict(list)
    for label, accuracy in zip(labels, per_sample, strict=True):
        groups[label].append(accuracy)
    return {label: {"accuracy": math.fsum(g) / len(g), "n": len(g)} for label, g in sorted(groups.items())}
