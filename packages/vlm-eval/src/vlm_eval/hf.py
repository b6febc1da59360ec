"""The metrics as `evaluate.Metric` objects: nothing is downloaded, `evaluate.combine` takes them, rows stay in memory.

`compute(predictions=..., references=...)` returns {name: value}.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps

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


# Each takes the keyword arguments of the function of its name.
anls = partial(TextMetric, vlm_eval.anls)
bert_score = partial(TextMetric, vlm_eval.bert_score)
bleu = partial(TextMetric, vlm_eval.bleu)
cider = partial(TextMetric, vlm_eval.cider)
exact_match = partial(TextMetric, vlm_eval.exact_match)
frechet_distance = partial(TextMetric, vlm_eval.frechet_distance)
meteor = partial(TextMetric, vlm_eval.meteor)
ref_clip_score = partial(TextMetric, vlm_eval.ref_clip_score)  # with `images`, in the order in which rows will come
relaxed_accuracy = partial(TextMetric, vlm_eval.relaxed_accuracy)
rouge = partial(TextMetric, vlm_eval.rouge)
vqa_accuracy = partial(TextMetric, vlm_eval.vqa_accuracy)


def clip_score(images: Sequence, **options) -> TextMetric:
    """`vlm_eval.clip_score` with the images in the order in which rows will come. References are taken and not used."""

    @wraps(vlm_eval.clip_score)
    def of_images(predictions, references, **options):
        return vlm_eval.clip_score(predictions, images, **options)

    return TextMetric(of_images, **options)
