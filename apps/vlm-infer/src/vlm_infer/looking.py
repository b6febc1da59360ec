"""Drawings of where a model looks as it says each word."""

from collections.abc import Iterator, Sequence

from PIL import Image

import vlm_data
import vlm_models
from vlm_infer.rows import Row


def draw(
    vlm: vlm_models.VLM, batch: vlm_models.Batch, rows: Sequence[Row], answers: Sequence[vlm_models.Answer]
) -> Iterator[Image.Image]:
    """For each row its image and beside it, one panel a word, where the model looked as it said it."""
    maps = vlm_models.attention_maps(vlm, batch, answers)
    for row, answer, of_tokens in zip(rows, answers, maps, strict=True):
        words = vlm_models.words_of(vlm, answer)
        of_words = [of_tokens[tokens].mean(0) for _, tokens in words]
        yield vlm_models.draw_attention(vlm_data.decode(row["image"]), [word for word, _ in words], of_words)
