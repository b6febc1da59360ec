"""Evaluate by generating: the texts a user would get, scored against the references."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from rich.console import Console

import vlm_eval
from vlm_data import Collator
from vlm_data.collators import image_identity
from vlm_models import VLM, ModelError, together
from vlm_train.progress import track

BATCH = 128  # rows
MORE_TOKENS = 8  # than the longest reference has: a longer text is wrong in any case


@dataclass(frozen=True)
class Evaluation:
    """Predictions, in the order of the rows, and their scores by metric name; the first is the headline."""

    predictions: list[str]
    scores: dict[str, vlm_eval.Score]

    @property
    def headline(self) -> tuple[str, vlm_eval.Score]:
        return next(iter(self.scores.items()))


def evaluate(vlm: VLM, collate: Collator, rows: Dataset, console: Console, title: str) -> Evaluation:
    """Generate greedily for every row and score. Exact match ignores case; captions are scored by BLEU too."""
    predictions = [""] * len(rows)
    known = {text for texts in rows["references"] for text in texts}
    longest = max(len(ids) for ids in vlm.processor.tokenizer(sorted(known), add_special_tokens=False).input_ids)
    images = [hash(image_identity(image)) for image in rows["image"]]
    batches = together(images, [len(prompt or "") for prompt in rows["prompt"]], BATCH)
    with track(console, title, len(rows)) as progress:
        for done, numbers in enumerate(batches, start=1):
            answers = _answers(vlm, collate, rows.select(numbers).to_list(), longest + MORE_TOKENS)
            for number, answer in zip(numbers, answers, strict=True):
                predictions[number] = answer
            progress.at(min(done * BATCH, len(rows)))
    return Evaluation(predictions, score(predictions, rows))


def _answers(vlm: VLM, collate: Collator, rows: list[dict], longest: int) -> list[str]:
    """The answers to some rows; where memory does not suffice for all at once, to one half after the other."""
    try:
        return [answer.text for answer in vlm.generate(vlm.to_device(collate.prompts(rows)), longest)]
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise ModelError(
                f"out of memory on {vlm.device} at one row alone; use --quantization nf4, or a smaller model"
            ) from None
    half = len(rows) // 2
    return _answers(vlm, collate, rows[:half], longest) + _answers(vlm, collate, rows[half:], longest)


def score(predictions: list[str], rows: Dataset) -> dict[str, vlm_eval.Score]:
    """The scores that suit the rows: VQA accuracy where there are several answers, BLEU where there are captions."""
    references, prompts = rows["references"], rows["prompt"]
    scores = {"exact_match": vlm_eval.exact_match(predictions, references)}
    questions = [index for index, prompt in enumerate(prompts) if prompt is not None]
    captions = [index for index, prompt in enumerate(prompts) if prompt is None]
    if any(len(references[index]) > 1 for index in questions):
        scores["vqa_accuracy"] = vlm_eval.vqa_accuracy(*_take(questions, predictions, references))
    if captions:
        scores["bleu"] = vlm_eval.bleu(*_take(captions, predictions, references))
    return scores


def _take(indices: list[int], *columns: list) -> list[list]:
    return [[column[index] for index in indices] for column in columns]
