"""Evaluate by generating: the texts a user would get, scored against the references; and by the loss of these."""

import math
from contextlib import closing
from dataclasses import dataclass

import torch
from datasets import Dataset
from rich.console import Console

import vlm_eval
from vlm_data import Collator
from vlm_models import VLM, Batch, ModelError, out_of_memory_known, together
from vlm_runs.progress import track
from vlm_train.errors import ConfigError
from vlm_train.processes import Processes
from vlm_train.rows.images import image_numbers
from vlm_train.rows.prefetch import prefetched

BATCH = 128  # rows
MORE_TOKENS = 8  # than the longest reference has: a longer text is wrong in any case
ENOUGH_CAPTIONS = 100  # CIDEr weights words by how rare they are in the references
LOSS = "loss"  # the one of `--metric`'s names that is better when it is lower


@dataclass(frozen=True)
class Evaluation:
    """How a state of the model does on the validation rows.

    Attributes:
        predictions: the generated texts, in the order of the rows.
        loss: of the references, in nats per token.
        scores: by metric name; the first is the headline.
        rows: by metric name, the numbers of the rows that it scores, in the order of its `per_sample`.
    """

    predictions: list[str]
    loss: float
    scores: dict[str, vlm_eval.Score]
    rows: dict[str, list[int]]

    @property
    def headline(self) -> tuple[str, vlm_eval.Score]:
        return next(iter(self.scores.items()))

    def score_values(self) -> dict[str, float]:
        return {name: score.value for name, score in self.scores.items()}

    def values(self) -> dict[str, float]:
        """The scores' values, and the loss."""
        return self.score_values() | {"validation_loss": self.loss}

    def by_row(self) -> list[dict[str, float]]:
        """The scores of each row by metric name, of those metrics that score it."""
        found: list[dict[str, float]] = [{} for _ in self.predictions]
        for name, score in self.scores.items():
            for row, value in zip(self.rows[name], score.per_sample, strict=True):
                found[row][name] = value
        return found

    def better_than(self, other: "Evaluation | None", metric: str) -> bool:
        """Whether it is better by that metric, and where that is equal by the loss; a first one, without another, is.

        No caption may be matched exactly for long, and the first state is not the best of them then.
        """
        if other is None:
            return True
        own, others = self.value(metric), other.value(metric)
        if own == others:
            return self.loss < other.loss
        return math.isnan(others) or (own < others if metric == LOSS else own > others)

    def value(self, metric: str) -> float:
        return self.loss if metric == LOSS else self.scores[metric].value


def evaluate(
    vlm: VLM,
    collate: Collator,
    rows: Dataset,
    console: Console,
    title: str,
    processes: Processes | None = None,
    workers: int = 0,
) -> Evaluation:
    """Generate greedily for every row, its share in each process, and score. All processes get the whole of it.

    With any workers, one prepares a batch while the one before is answered: more would hold too many images.
    """
    processes = processes or Processes()
    known = {text for texts in rows["references"] for text in texts}
    longest = max(len(ids) for ids in vlm.processor.tokenizer(sorted(known), add_special_tokens=False).input_ids)
    batches = processes.share(together(image_numbers(rows), [len(prompt or "") for prompt in rows["prompt"]], BATCH))
    answers, losses = [], []

    def asked(numbers: list[int]) -> tuple[list[int], list[dict], Batch]:
        some = rows.select(numbers).to_list()
        return numbers, some, collate.prompts(some)

    training = vlm.training
    vlm.eval()
    coming = prefetched(asked, batches, min(workers, 1))
    with track(console, title, len(rows)) as progress, torch.no_grad(), closing(coming):
        for done, (numbers, some, prompts) in enumerate(coming, start=1):
            texts, parts = _answers(vlm, collate, some, prompts, longest + MORE_TOKENS)
            answers += zip(numbers, texts, strict=True)
            losses += [(numbers[0], *part) for part in parts]
            progress.at(min(done * BATCH * processes.count, len(rows)))
    vlm.train(training)
    predictions = dict(processes.gather(answers))
    # In the order of the rows, whoever had them: a sum depends on it.
    summed = sorted(processes.gather(losses))
    loss = sum(part for _, part, _ in summed) / sum(tokens for *_, tokens in summed)
    return evaluation_of([predictions[number] for number in range(len(rows))], loss, rows)


def evaluation_of(predictions: list[str], loss: float, rows: Dataset) -> Evaluation:
    """The evaluation that gave these predictions and this loss."""
    references = rows["references"]
    scored = metrics_of(rows)
    scores = {
        name: getattr(vlm_eval, name)(*([column[row] for row in numbers] for column in (predictions, references)))
        for name, numbers in scored.items()
    }
    return Evaluation(predictions, loss, scores, scored)


def metrics_of(rows: Dataset) -> dict[str, list[int]]:
    """The metrics that suit the rows, and the numbers of the rows that each scores; the first is the headline.

    Exact match, which ignores case, for all; VQA accuracy where questions have several answers, BLEU where there are
    captions, and CIDEr where there are many. Where all are captions, exact match, which few reach, comes last.
    """
    prompts, references = rows["prompt"], rows["references"]
    questions = [row for row, prompt in enumerate(prompts) if prompt is not None]
    captions = [row for row, prompt in enumerate(prompts) if prompt is None]
    found = {"exact_match": list(range(len(prompts)))}
    if any(len(references[row]) > 1 for row in questions):
        found["vqa_accuracy"] = questions
    if captions:
        found["bleu"] = captions
    if len(captions) >= ENOUGH_CAPTIONS:
        found["cider"] = captions
    return dict(reversed(found.items())) if not questions else found


def check_metric(metric: str | None, rows: Dataset) -> str:
    """The metric that the best state is chosen by; None is the headline.

    Raises ConfigError: no such metric suits the rows.
    """
    known = [*metrics_of(rows), LOSS]
    if metric is not None and metric not in known:
        raise ConfigError(f"--metric {metric!r} is not among those of these rows: {', '.join(known)}")
    return metric or known[0]


def _answers(
    vlm: VLM, collate: Collator, rows: list[dict], prompts: Batch, longest: int
) -> tuple[list[str], list[tuple[float, int]]]:
    """The answers to some rows, and summed loss and tokens of their references.

    Where memory does not suffice for all at once, one half after the other.
    """
    try:
        with out_of_memory_known():
            return _answers_at_once(vlm, collate, rows, prompts, longest)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise ModelError(
                f"out of memory on {vlm.device} at one row alone; use --quantization nf4, or a smaller model"
            ) from None
    half = len(rows) // 2
    halves = [_answers(vlm, collate, part, collate.prompts(part), longest) for part in (rows[:half], rows[half:])]
    return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]


def _answers_at_once(
    vlm: VLM, collate: Collator, rows: list[dict], prompts: Batch, longest: int
) -> tuple[list[str], list[tuple[float, int]]]:
    """Apart from `_answers`, which would hold what is on the device while it tries with fewer rows."""
    asked = vlm.to_device(prompts)
    asked["features"] = vlm.encode_images(asked)
    texts = [answer.text for answer in vlm.generate(asked, longest)]
    # The rest is read from the CPU's batch: image by image, a GPU would be waited for each time.
    loss, tokens = vlm(vlm.to_device(collate(rows, _encoded_images({**prompts, "features": asked["features"]}))))
    return texts, [(loss.item(), int(tokens))]


def _encoded_images(batch: Batch) -> list[dict]:
    """Inputs of each image that the rows show, features in place of pixels: what was encoded is not encoded again."""
    not_of_images = {"input_ids", "attention_mask", "padding", "image_index", "features"}
    others = [name for name in batch if name not in not_of_images and not name.startswith("pixel")]
    images = [
        {"features": features, **{name: batch[name][place] for name in others}}
        for place, features in enumerate(batch["features"])
    ]
    return [images[place] for place in batch["image_index"].tolist()]
