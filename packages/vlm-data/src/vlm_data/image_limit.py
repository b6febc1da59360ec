"""A limit to the tokens of an image, for models that take images of any size: a photograph can cost 16,000."""

from collections.abc import Iterable, Mapping
from typing import Any

from vlm_data.collators import image_identity
from vlm_data.images import size_of
from vlm_data.schema import DataError

MAX_IMAGE_TOKENS = 1024  # of Qwen2-VL a picture of 896 x 896 pixels


def limit_image_tokens(
    processor: Any, tokens: int = MAX_IMAGE_TOKENS, images: Iterable[Mapping[str, Any]] = ()
) -> str | None:
    """Let the processor shrink an image that would take more tokens; its sides keep their ratio, none is enlarged.

    It is the processor's own setting (`image_processor.size`) that is changed, so that the limit is saved with it, and
    features that are kept of images know of it. Nothing happens to the processors of other models, which cut or scale
    every image to sizes of their own, nor if the processor's own limit is lower. Below some ten tokens, small images
    may take more, for the processor rounds their sides up.

    Of `images`, {"path", "bytes"} each, the headers are read to say how many of them are shrunk; returns a line that
    says so, None if there are none. Raises DataError for a limit below 1.
    """
    if tokens < 1:
        raise DataError(f"a limit of {tokens} tokens to an image; it must be at least 1")
    of_images = processor.image_processor
    if not hasattr(of_images, "merge_size"):
        return None
    side = of_images.patch_size * of_images.merge_size  # pixels of a token
    size, pixels = of_images.size, tokens * side**2
    if size["longest_edge"] <= pixels:
        return None
    sizes: dict[str | bytes, tuple[int, int]] = {}
    for image in images:
        key = image_identity(image)
        if key not in sizes:
            sizes[key] = size_of(image)
    needed = [of_images.get_number_of_image_patches(height, width, {}) for width, height in sizes.values()]
    needed = [patches // of_images.merge_size**2 for patches in needed]
    of_images.size = type(size)(shortest_edge=min(size["shortest_edge"], pixels), longest_edge=pixels)
    larger = [count for count in needed if count > tokens]
    if not larger:
        return None
    return f"{len(larger):,} of {len(needed):,} images are shrunk to {tokens:,} tokens; the largest has {max(larger):,}"
