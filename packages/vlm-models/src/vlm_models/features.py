"""Encode once: with a frozen image encoder an image's features never change, so they are computed once and kept.

    FOLDER / fingerprint of the image encoder's weights and the preprocessing / content of the image  ->  features

The folder is shared by runs, processes and models; see `tensor_store.py` for why that is safe.
"""

import hashlib
import json
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vlm_models.errors import ModelError
from vlm_models.tensor_store import TensorStore
from vlm_models.vlm import VLM, Batch

MAX_BYTES = 10 * 2**30
BATCH = 8  # images encoded at a time, ahead: more are slower on a CPU, whose caches they leave, and take more memory
PREPROCESSING = ("transformers", "torchvision", "pillow")  # whose versions may decode and resize differently
LANGUAGE_CONFIGS = ("text_config", "decoder")
NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "quantization_config")  # never of the image encoder

ImageInputs = dict[str, Tensor]  # of one image: `features` [tokens, dim], and what else a batch has of it but pixels
Inputs = Callable[[list[int]], Batch]  # places in a list of keys -> these images as `vlm.encode_images` takes them


class FeatureCache:
    """What `vlm.encode_images` makes of images, by the content of their files.

    folder: by default `$XDG_CACHE_HOME` or `~/.cache`, then `vlm-models/features`.
    max_bytes: of the whole folder; what was not used for longest is dropped.

    `off` is None, or the line that says why nothing is kept: a parameter that the features depend on is trained. So
    attach methods first. Keys are hexadecimal digests of image files (`vlm_data.content_key`).

    Raises ModelError: the folder cannot be made.
    """

    def __init__(self, vlm: VLM, folder: str | os.PathLike | None = None, max_bytes: int = MAX_BYTES):
        self.vlm = vlm
        self.folder = Path(folder).expanduser() if folder is not None else default_folder()
        self.max_bytes = max_bytes
        self.off = _why_not(vlm)
        if self.off is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ModelError(f"feature cache {self.folder}: {error.strerror}; choose another folder") from error
            self.fingerprint = fingerprint(vlm)
            self._store = TensorStore(self.folder, self.fingerprint, max_bytes)
            self._writes = True

    def encode(self, keys: Sequence[str], inputs: Inputs) -> list[ImageInputs]:
        """The image inputs of each key, `features` on the model's device; read where known, else computed and kept.

        `inputs` is called with the places of the images that are not known, if there are any, each distinct one once.
        Features that are read are mapped from files: do not keep more than a few thousand.
        """
        device = self.vlm.device
        entries = {key: self._read(key, device) for key in dict.fromkeys(keys)}
        places = {key: place for place, key in reversed(list(enumerate(keys))) if entries[key] is None}
        if places:
            encoded = self._encode(inputs(list(places.values())))
            for key, entry in zip(places, encoded, strict=True):
                entries[key] = entry
                self._write(key, entry)
        return [entries[key] for key in keys]

    def fill(
        self,
        keys: Sequence[str],
        inputs: Inputs,
        progress: Callable[[int], object] = lambda done: None,
        in_turn: Callable[[Callable, Iterable], Iterable] = map,
    ) -> int:
        """Compute ahead what is not known; returns how many images that were. `progress` hears how many are done.

        in_turn: as `map`, by which `inputs` is called for some images after the other; another one may do it in threads
            while the images before are encoded.
        """
        if self.off:
            return 0
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        missing = [place for key, place in first.items() if key not in self._store]
        parts = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
        random.Random(os.getpid()).shuffle(parts)  # so that processes that fill one cache at once share the work
        done = len(first) - len(missing)

        def needed(part: list[int]) -> tuple[list[int], Batch | None]:
            left = [place for place in part if keys[place] not in self._store]  # by others, meanwhile, the rest
            return left, inputs(left) if left else None

        for part, (left, batch) in zip(parts, in_turn(needed, parts), strict=True):
            for place, entry in zip(left, self._encode(batch) if left else (), strict=True):
                self._write(keys[place], entry)
            done += len(part)
            progress(done)
        return len(missing)

    @staticmethod
    def predicted_bytes(sample: Sequence[ImageInputs], images: int) -> int:
        """What `images` images like those of the sample take on disk."""
        header = 256
        sizes = [header + sum(tensor.nbytes for tensor in entry.values()) for entry in sample]
        return round(sum(sizes) / len(sizes) * images)

    def _read(self, key: str, device: torch.device) -> ImageInputs | None:
        if not key.isalnum():  # it names a file
            raise ModelError(
                f"feature cache: key {key!r} is no hexadecimal digest of an image; use vlm_data.content_key"
            )
        entry = None if self.off else self._store.read(key)
        return None if entry is None else {**entry, "features": entry["features"].to(device)}

    def _encode(self, batch: Batch) -> Iterator[ImageInputs]:
        if self.off:
            features = self.vlm.encode_images(self.vlm.to_device(batch))
        else:
            if _why_not(self.vlm) or fingerprint(self.vlm) != self.fingerprint:
                raise ModelError("the image encoder has changed since its feature cache was opened; open another")
            # What is kept must not depend on where it was first needed: in a training step, there may be dropout.
            with _evaluating(self.vlm), torch.no_grad(), torch.autocast(self.vlm.device.type, enabled=False):
                features = self.vlm.encode_images(self.vlm.to_device(batch))
        others = {name: value for name, value in batch.items() if not name.startswith("pixel")}
        for index, one in enumerate(features):
            yield {**{name: value[index] for name, value in others.items()}, "features": one}

    def _write(self, key: str, entry: ImageInputs) -> None:
        if self.off or not self._writes:
            return
        try:
            self._store.write(key, entry)
        except OSError as error:
            self._writes = False
            warnings.warn(f"feature cache {self.folder}: {error.strerror}; no more is kept from here on", stacklevel=4)


def default_folder() -> Path:
    """Where features are kept if no folder is given."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm-models" / "features"
    except RuntimeError as error:
        raise ModelError("feature cache: this user has no home folder; name a folder, or set XDG_CACHE_HOME") from error


def fingerprint(vlm: VLM) -> str:
    """SHA-256 (hex, 128 bits of it) of all that features depend on but the image: every byte of the image encoder's
    weights and buffers, its configuration and dtype, and the preprocessing. Computed once per state of a loaded model.
    """
    tensors = dict(_vision_tensors(vlm))
    state = [(name, tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()]
    known = _FINGERPRINTS.get(vlm)
    if known is None or known[0] != state:
        with ThreadPoolExecutor() as pool:  # hashing runs outside the interpreter's lock
            hashes = list(pool.map(_hash, tensors.values()))
        processor = vlm.processor.image_processor
        described = {
            "weights": [[name, *parts] for name, parts in zip(tensors, hashes, strict=True)],
            "model": [vlm.family, type(vlm.model).__name__, _vision_config(vlm.model.config.to_dict())],
            "preprocessing": [type(processor).__name__, processor.to_dict(), [version(name) for name in PREPROCESSING]],
        }
        text = json.dumps(described, sort_keys=True, default=str)
        known = _FINGERPRINTS[vlm] = (state, hashlib.sha256(text.encode()).hexdigest()[:32])
    return known[1]


_FINGERPRINTS: WeakKeyDictionary[VLM, tuple[list, str]] = WeakKeyDictionary()


def _vision_tensors(vlm: VLM) -> Iterator[tuple[str, Tensor]]:
    for named in (vlm.model.named_parameters(), vlm.model.named_buffers()):
        yield from ((name, tensor) for name, tensor in named if name.startswith(vlm.vision_parts))


def _hash(tensor: Tensor) -> tuple[str, list[int], str]:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), list(tensor.shape), hashlib.sha256(content).hexdigest()


def _vision_config(config: Any) -> Any:
    """A configuration without the language model's, and without what a model is called."""
    if not isinstance(config, dict):
        return config
    left_out = LANGUAGE_CONFIGS + NOT_OF_THE_MODEL
    return {str(name): _vision_config(value) for name, value in config.items() if name not in left_out}


def _why_not(vlm: VLM) -> str | None:
    if not vlm.trains_vision:
        return None
    parameters = vlm.model.named_parameters()
    name = next(name for name, one in parameters if one.requires_grad and name.startswith(vlm.vision_parts))
    return f"images are encoded every step: the image encoder is trained ({name})"


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Every part of a module in evaluation mode, then each in its own mode again."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
