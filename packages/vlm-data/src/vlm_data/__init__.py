"""Image captioning and visual question answering data: rows of one schema, clean images, splits without leaks."""

from vlm_data.batching import batches
from vlm_data.collators import Collator, collator
from vlm_data.contact_sheet import contact_sheet
from vlm_data.describing import Description, describe
from vlm_data.fitting import fit
from vlm_data.image_limit import limit_image_tokens
from vlm_data.images import ImageError, content_key, decode, pixel_key
from vlm_data.looking_alike import near_duplicates
from vlm_data.opening import open, splits
from vlm_data.schema import FEATURES, DataError, Rejected
from vlm_data.splitting import overlap, split
from vlm_data.streams import Stream, stream
from vlm_data.verifying import verify

__all__ = [
    "FEATURES",
    "Collator",
    "DataError",
    "Description",
    "ImageError",
    "Rejected",
    "Stream",
    "batches",
    "collator",
    "contact_sheet",
    "content_key",
    "decode",
    "describe",
    "fit",
    "limit_image_tokens",
    "near_duplicates",
    "open",
    "overlap",
    "pixel_key",
    "split",
    "splits",
    "stream",
    "verify",
]
