"""One text for each row."""

import sys

from datasets import Dataset
from rich.console import Console
from rich.progress import track

import peft_methods
import vlm_data
import vlm_models

UserError = (
    vlm_data.DataError,
    vlm_data.ImageError,
    vlm_models.ModelError,
    peft_methods.TargetError,
    peft_methods.AdapterError,
)


def predict(vlm: vlm_models.VLM, rows: Dataset, batch_size: int, max_new_tokens: int, num_beams: int) -> list[str]:
    """Generated texts in the order of the rows."""
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    texts: list[str] = []
    starts = range(0, len(rows), batch_size)
    console = Console(file=sys.stderr)
    for start in track(starts, "generating", console=console, transient=True, disable=len(starts) < 2):
        part = rows.select(range(start, min(start + batch_size, len(rows)))).to_list()
        texts += vlm.generate(vlm.to_device(collate.prompts(part)), max_new_tokens, num_beams)
    return texts
