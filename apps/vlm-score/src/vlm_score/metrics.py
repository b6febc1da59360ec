"""The metrics that can be asked for, and those that suit the rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import vlm_eval
from vlm_eval.report import Row
from vlm_score.errors import ScoreError
from vlm_score.rows import Answer


@dataclass(frozen=True)
class Models:
    """The models behind the metrics that need one, and where they run."""

    encoder: str
    clip: str
    device: str


def _texts(name: str, rows: list[Row], answers: list[Answer], models: Models, **options) -> vlm_eval.Score:
    predictions, references = [answer.text for answer in answers], [row.references for row in rows]
    return getattr(vlm_eval, name)(predictions, references, **options)


def _bert_score(rows: list[Row], answers: list[Answer], models: Models) -> vlm_eval.Score:
    return _texts("bert_score", rows, answers, models, model=models.encoder, device=models.device)


def _frechet_distance(rows: list[Row], answers: list[Answer], models: Models) -> vlm_eval.Score:
    return _texts("frechet_distance", rows, answers, models, encoder=models.encoder, device=models.device)


def _clip_score(rows: list[Row], answers: list[Answer], models: Models) -> vlm_eval.Score:
    predictions = [answer.text for answer in answers]
    return vlm_eval.clip_score(predictions, _images(rows), models.clip, device=models.device)


def _ref_clip_score(rows: list[Row], answers: list[Answer], models: Models) -> vlm_eval.Score:
    return _texts(
        "ref_clip_score", rows, answers, models, images=_images(rows), model=models.clip, device=models.device
    )


def _images(rows: list[Row]) -> list[str]:
    for row in rows:
        if row.image is None or not Path(row.image).is_file():
            raise ScoreError(f"{row.id}: no image {row.image or ''}; say with --image-dir where the images are")
    return [row.image for row in rows]


Metric = Callable[[list[Row], list[Answer], Models], vlm_eval.Score]
_FROM_TEXTS = ("exact_match", "vqa_accuracy", "anls", "relaxed_accuracy", "bleu", "rouge", "cider", "meteor")
METRICS: dict[str, Metric] = {
    **{name: partial(_texts, name) for name in _FROM_TEXTS},
    "bert_score": _bert_score,
    "frechet_distance": _frechet_distance,
    "clip_score": _clip_score,
    "ref_clip_score": _ref_clip_score,
}
LOWER_IS_BETTER = {"frechet_distance"}


def choose(asked: str | None, rows: list[Row]) -> list[str]:
    """The metrics named, separated by commas; by default those of answers, of captions, or of both."""
    if asked is not None:
        names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
        unknown = [name for name in names if name not in METRICS]
        if unknown or not names:
            raise ScoreError(f"--metrics {asked}: no metric {', '.join(unknown)}; there are {', '.join(METRICS)}")
        return names
    names = []
    questions = [row for row in rows if row.question is not None]
    if questions:
        names += ["exact_match"] + (["vqa_accuracy"] if any(len(row.references) > 1 for row in questions) else [])
    if len(questions) < len(rows):
        names += ["bleu", "rouge", "cider"]
    return names
