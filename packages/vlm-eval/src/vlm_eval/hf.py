"""The metrics as `evaluate.Metric` objects: nothing is downloaded, `evaluate.combine` takes them, rows stay in memory.

`compute(predictions=..., references=...)` returns {name: value}.
"""

from collections.abc import Callable

import evaluate
from datasets import Features, List, Value

import vlm_eval
from vlm_eval.rows import check_rows


class TextMetric(evaluate.Metric):
    """One function of `vlm_eval` with its options."""

    def __init__(self, function: Callable[..., vlm_eval.Score], **options):
        self.function, self.options = function, options
        super().__init__(keep_in_memory=True)
        self.info.module_name = function.__name__

    def _info(self) -> evaluate.MetricInfo:
        features = Features(predictions=Value("string"), references=List(Value("string")))
        return evaluate.MetricInfo(description=self.function.__doc__, citation="", features=features)

    def add(self, *, prediction, reference):
        """Keep one row."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references):
        """Keep rows for `compute`, checked first: evaluate itself would take a text for a list of characters."""
        predictions, references = check_rows(predictions, references)
        super().add_batch(predictions=predictions, references=references)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {self.name: self.function(predictions, references, **self.options).value}


def exact_match(**options) -> TextMetric:
    """`vlm_eval.exact_match` as a metric; `options` are its keyword arguments."""
    return TextMetric(vlm_eval.exact_match, **options)


def vqa_accuracy(**options) -> TextMetric:
    """`vlm_eval.vqa_accuracy` as a metric; `options` are its keyword arguments."""
    return TextMetric(vlm_eval.vqa_accuracy, **options)


def bleu(**options) -> TextMetric:
    """`vlm_eval.bleu` as a metric; `options` are its keyword arguments."""
    return TextMetric(vlm_eval.bleu, **options)
