"""Encode each image once: with a frozen image encoder its features never change, so later steps need no pixels."""

import torch
from datasets import Dataset
from rich.console import Console

from vlm_data import Collator, decode
from vlm_data.collators import ImageInputs, image_identity
from vlm_models import VLM
from vlm_train.progress import track

MAX_BYTES = 4 * 2**30  # kept in memory at most
BATCH = 64  # images

Features = dict[str | bytes, ImageInputs]


@torch.no_grad()
def encode_once(vlm: VLM, collate: Collator, rows: Dataset, console: Console) -> Features | None:
    """Image inputs with `features` in place of pixels, by image identity; None if they must be computed every step.

    They must if the image encoder is trained, or if the features would take more memory than MAX_BYTES.
    """
    if vlm.trains_vision:
        console.print("images are encoded every step: the image encoder is trained")
        return None
    images = {image_identity(image): image for image in rows["image"]}
    kept: Features = {}
    size = 0
    names = list(images)
    with track(console, "encoding images", len(names)) as progress:
        for start in range(0, len(names), BATCH):
            part = names[start : start + BATCH]
            inputs = collate.image_inputs([decode(images[name]) for name in part])
            encoded = vlm.encode_images(vlm.to_device(collate.join_images(inputs)))
            for name, one, features in zip(part, inputs, encoded, strict=True):
                others = {key: value for key, value in one.items() if key != "pixel_values"}
                kept[name] = {**others, "features": features.cpu()}
                size += features.numel() * features.element_size()
            if size / len(kept) * len(names) > MAX_BYTES:
                console.print(f"images are encoded every step: their features would take over {MAX_BYTES >> 30} GiB")
                return None
            progress.at(len(kept))
    console.print(f"{len(kept):,} images encoded once, {size / 2**20:.0f} MiB")
    return kept


def prepared(features: Features | None, rows: list[dict]) -> list[ImageInputs] | None:
    """The encoded images of some rows, for the collator."""
    return None if features is None else [features[image_identity(row["image"])] for row in rows]
