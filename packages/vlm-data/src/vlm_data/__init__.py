"""Image captioning and visual question answering data: rows of one schema, clean images, splits without leaks."""

from vlm_data.collators import Collator, collator
from vlm_data.images import ImageError, content_key, decode
from vlm_data.opening import open
from vlm_data.schema import FEATURES, DataError, Rejected
from vlm_data.splitting import split
from vlm_data.verifying import verify

__all__ = [
    "FEATURES",
    "Collator",
    "DataError",
    "ImageError",
    "Rejected",
    "collator",
    "content_key",
    "decode",
    "open",
    "split",
    "verify",
]
