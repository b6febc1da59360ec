"""One text for each row."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from rich.console import Console
from rich.progress import track

import peft_methods
import vlm_data
import vlm_models
from vlm_data.collators import image_identity

UserError = (
    vlm_data.DataError,
    vlm_data.ImageError,
    vlm_models.ModelError,
    peft_methods.TargetError,
    peft_methods.AdapterError,
)


def predict(
    vlm: vlm_models.VLM,
    rows: Dataset,
    batch_size: int,
    max_new_tokens: int,
    num_beams: int,
    attention: Path | None = None,
) -> list[str]:
    """Generated texts in the order of the rows; with `attention`, drawings of where each text looks in this folder."""
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    texts = [""] * len(rows)
    images = [hash(image_identity(image)) for image in rows["image"]]
    batches = vlm_models.together(images, [len(prompt or "") for prompt in rows["prompt"]], batch_size)
    console = Console(file=sys.stderr)
    for numbers in track(batches, "generating", console=console, transient=True, disable=len(batches) < 2):
        part = rows.select(numbers).to_list()
        batch = vlm.to_device(collate.prompts(part))
        try:
            answers = vlm.generate(batch, max_new_tokens, num_beams)
        except torch.OutOfMemoryError as error:
            fewer = f"use --batch-size {len(part) // 2}" if len(part) > 1 else "use --device cpu"
            raise vlm_models.ModelError(f"out of memory on {vlm.device} with {len(part)} rows; {fewer}") from error
        for number, answer in zip(numbers, answers, strict=True):
            texts[number] = answer.text
        if attention is not None:
            drawings = draw(vlm, batch, part, answers)
            for number, row, drawing in zip(numbers, part, drawings, strict=True):
                drawing.save(attention / f"{number + 1:05d}-{Path(row['image']['path']).stem}.png")
    return texts


def draw(
    vlm: vlm_models.VLM, batch: vlm_models.Batch, rows: list[dict], answers: list[vlm_models.Answer]
) -> Iterator[Image.Image]:
    """For each row its image and beside it, one panel a word, where the model looked as it said it."""
    maps = vlm_models.attention_maps(vlm, batch, answers)
    for row, answer, of_tokens in zip(rows, answers, maps, strict=True):
        words = vlm_models.words_of(vlm, answer)
        of_words = [of_tokens[tokens].mean(0) for _, tokens in words]
        yield vlm_models.draw_attention(vlm_data.decode(row["image"]), [word for word, _ in words], of_words)
