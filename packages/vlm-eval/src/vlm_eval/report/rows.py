"""What a report shows."""

from dataclasses import dataclass, field

from vlm_eval.compare import Comparison
from vlm_eval.score import Score

Comparisons = dict[str, Comparison]


@dataclass(frozen=True)
class Row:
    """What is asked of one image, and what would be right.

    Attributes:
        id: what names the row.
        references: the right answers, or captions.
        question: None where a caption is asked for.
        image: path of the picture, if there is one.
        types: labels to group rows by, {"answer_type": "number"}.
    """

    id: str
    references: list[str]
    question: str | None = None
    image: str | None = None
    types: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What one model said, n texts for n rows.

    Attributes:
        name: of the run.
        predictions: n texts.
        failed: for each row None, or why there is no prediction. Such a row counts as wrong and
            is shown with the reason.
        scores: by metric name, each of the n rows.
    """

    name: str
    predictions: list[str]
    failed: list[str | None]
    scores: dict[str, Score]
