"""An image processor and a tokenizer side by side, for models whose checkpoints have no processor of their own."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer


@dataclass(frozen=True)
class ImageTextPair:
    """What a `VisionEncoderDecoderModel` needs of a processor."""

    image_processor: Any
    tokenizer: Any

    @classmethod
    def from_pretrained(cls, place: str, **hub: Any) -> "ImageTextPair":
        """From a folder or hub id; `hub` are options such as `revision`."""
        return cls(AutoImageProcessor.from_pretrained(place, **hub), AutoTokenizer.from_pretrained(place, **hub))

    def save_pretrained(self, folder: str) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
