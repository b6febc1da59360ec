"""A metric of one's own: how near a number in the answer is to the true one, with interval and paired comparison."""

import re

from vlm_eval import Score, compare
from vlm_eval.rows import check_rows
from vlm_eval.score import mean_score, signature


def count_accuracy(predictions: list[str], references: list[list[str]], slack: float = 0.5) -> Score:
    """1 for the right number, falling linearly to 0 at a relative error of `slack`; the best reference counts."""
    predictions, references = check_rows(predictions, references)
    per_sample = [
        max(_nearness(_number(said), _number(true), slack) for true in row)
        for said, row in zip(predictions, references, strict=True)
    ]
    return mean_score(per_sample, signature("count_accuracy", references, slack=slack), {})


def _number(text: str) -> float | None:
    found = re.search(r"-?\d+(\.\d+)?", text)
    return float(found[0]) if found else None


def _nearness(said: float | None, true: float | None, slack: float) -> float:
    if said is None or true is None:
        return float(said == true)
    return max(0.0, 1 - abs(said - true) / (slack * max(abs(true), 1)))


if __name__ == "__main__":
    truth = [["4"], ["12 apples"], ["3"], ["7"]] * 10
    one = count_accuracy(["4", "there are 13", "three", "7"] * 10, truth)
    other = count_accuracy(["5", "10", "3", "6"] * 10, truth)
    print(one, one.signature, compare(one, other, [str(i % 8) for i in range(40)]), sep="\n")
