"""Encode each image once: with a frozen image encoder its features never change, so later steps need no pixels."""

from collections.abc import Callable, Sequence
from functools import partial

from datasets import Dataset
from rich.console import Console

from vlm_data import Collator, content_key, decode
from vlm_data.collators import ImageInputs
from vlm_models import Batch, FeatureCache
from vlm_runs.progress import track
from vlm_train.processes import Processes
from vlm_train.rows.images import DistinctImages
from vlm_train.rows.prefetch import prefetched

SAMPLE = 8  # images from which the size of all is predicted


class Features:
    """Image inputs with `features` in place of pixels, out of a cache that encodes what it does not have."""

    def __init__(self, cache: FeatureCache, collate: Collator, workers: int = 0):
        self.cache = cache
        self.collate = collate
        self.workers = workers  # threads that decode images while others are encoded
        self._keys: dict[str, str] = {}  # content keys by path: a file is read for its own only once

    def of(self, images: Sequence[dict]) -> list[ImageInputs]:
        """The encoded images, in their order."""
        return self.cache.encode(*self._asked(images))

    def fill(self, images: Sequence[dict], progress: Callable[[int], object] = lambda done: None) -> int:
        """Encode ahead what the cache does not have; returns how many images that were."""
        return self.cache.fill(*self._asked(images), progress, partial(prefetched, workers=self.workers))

    def _asked(self, images: Sequence[dict]) -> tuple[list[str], Callable[[list[int]], Batch]]:
        """The images' keys, and how to get the pixels of some of them."""

        def pixels(places: list[int]) -> Batch:
            return self.collate.join_images(self.collate.image_inputs([decode(images[place]) for place in places]))

        return [self._key(image) for image in images], pixels

    def _key(self, image: dict) -> str:
        if image["bytes"] is not None:
            return content_key(image)
        if image["path"] not in self._keys:
            self._keys[image["path"]] = content_key(image)
        return self._keys[image["path"]]


def encode_once(
    cache: FeatureCache,
    collate: Collator,
    rows: Dataset,
    console: Console,
    ahead: bool = True,
    processes: Processes | None = None,
    workers: int = 0,
) -> Features | None:
    """The features of the rows' images, computed now, by each process its share, or (not `ahead`) when first needed.

    None, and a line that says why, if they must be computed every step: the image encoder is trained, or they are
    larger than the cache may become.
    """
    if cache.off:
        console.print(cache.off, highlight=False, soft_wrap=True)
        return None
    processes = processes or Processes()
    features = Features(cache, collate, workers)
    images = DistinctImages(rows)
    sample = images[:: -(-len(images) // SAMPLE)]
    new = features.fill(sample) if processes.main else 0
    processes.wait()
    size = cache.predicted_bytes(features.of(sample), len(images))
    if size > cache.max_bytes:
        needed, allowed = size / 2**30, cache.max_bytes / 2**30
        console.print(
            f"images are encoded every step: their features take {needed:.3g} GiB, --cache-size allows {allowed:.3g}",
            highlight=False,
            soft_wrap=True,
        )
        return None
    if ahead:
        own = processes.share(images)
        with track(console, "encoding images", len(own)) as progress:
            new += features.fill(own, progress.at)
        done = f"{len(images):,} images encoded once, {int(processes.sum(new)[0]):,} of them now"
    else:
        done = f"{len(images):,} images, each encoded when it is first shown"
    console.print(f"{done}; {size / 2**20:,.0f} MiB in {cache.folder}", highlight=False, soft_wrap=True)
    return features


def prepared(features: Features | None, collate: Collator, rows: list[dict]) -> list[ImageInputs] | None:
    """The encoded images of some rows, for the collator."""
    return None if features is None else features.of(collate.shown(rows))
