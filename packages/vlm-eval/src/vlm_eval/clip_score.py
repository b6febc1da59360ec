"""CLIPScore and RefCLIPScore (Hessel et al., 2021): does a caption fit its image, and its references, to CLIP's eye?

    CLIPScore    = w * max(cos(caption, image), 0), w = 2.5
    RefCLIPScore = harmonic mean of CLIPScore and max(max over references of cos(caption, reference), 0)

Every text is embedded with "A photo depicts " before it, and cut to the tokens that CLIP takes, the end token kept.
"""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from vlm_eval.rows import check_rows, encodable
from vlm_eval.score import Score, mean_score, signature

WEIGHT = 2.5
PREFIX = "A photo depicts "
MODEL = "openai/clip-vit-base-patch32"


def clip_score(
    predictions: Sequence[str],
    images: Sequence,
    model: str = MODEL,
    prefix: str = PREFIX,
    device: str = "cpu",
    batch_size: int = 32,
) -> Score:
    """Mean CLIPScore over rows, 0 to 2.5; no references are needed.

    Args:
        predictions: n captions. An empty one scores 0.
        images: n images: PIL images or paths.
        model: hub id or folder of a CLIP with its processor. The published numbers are of ViT-B/32.
        prefix: put before each text. The published one by default; some harnesses use none.
        device: where CLIP runs.
        batch_size: images or texts embedded at once.

    Raises:
        OSError: `model` is neither a folder nor a reachable hub id, or an image cannot be read.
        ValueError: as many images as predictions are needed, or see `rows.check_rows`.
    """
    predictions, _ = check_rows(predictions, predictions)
    clip = _Clip(model, prefix, device, batch_size)
    scores = _image_scores(clip, predictions, _captions(clip, predictions, images), images)
    choices = {"model": model, "prefix": repr(prefix), "w": WEIGHT}
    return mean_score(scores.tolist(), signature("clip_score", [[]], **choices), {})


def ref_clip_score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    images: Sequence,
    model: str = MODEL,
    prefix: str = PREFIX,
    device: str = "cpu",
    batch_size: int = 32,
) -> Score:
    """Mean RefCLIPScore over rows, 0 to 10/7; arguments and errors are those of `clip_score`.

    Args:
        references: n texts, or n lists of texts; their order does not matter.

    Returns:
        A score whose details hold `clip_score` and `reference_similarity`, the means of the two sides.
    """
    predictions, references = check_rows(predictions, references)
    clip = _Clip(model, prefix, device, batch_size)
    captions = _captions(clip, predictions, images)
    to_image = _image_scores(clip, predictions, captions, images)
    rows = np.repeat(np.arange(len(references)), [len(row) for row in references])
    cosines = (captions[rows] * clip.texts([text for row in references for text in row])).sum(1)
    to_reference = np.zeros(len(predictions))  # which is where negative similarities end up too
    np.maximum.at(to_reference, rows, cosines)
    to_reference[[not text.strip() for text in predictions]] = 0
    total = to_image + to_reference
    scores = np.divide(2 * to_image * to_reference, total, out=np.zeros_like(total), where=total > 0)
    choices = {"model": model, "prefix": repr(prefix), "w": WEIGHT}
    return mean_score(
        scores.tolist(),
        signature("ref_clip_score", references, **choices),
        {"clip_score": float(to_image.mean()), "reference_similarity": float(to_reference.mean())},
    )


def _captions(clip: "_Clip", predictions: list[str], images: Sequence) -> np.ndarray:
    if len(images) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions but {len(images)} images: give one image a row")
    return clip.texts(predictions)


def _image_scores(clip: "_Clip", predictions: list[str], captions: np.ndarray, images: Sequence) -> np.ndarray:
    cosines = (captions * clip.images(images)).sum(1)
    cosines[[not text.strip() for text in predictions]] = 0
    return WEIGHT * np.maximum(cosines, 0)


class _Clip:
    """CLIP's two encoders, to unit vectors in float64."""

    def __init__(self, model: str, prefix: str, device: str, batch_size: int):
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.model = CLIPModel.from_pretrained(model).to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(model)
        # Pillow's bicubic resizing, as of the published scores; torchvision's moves a score by about 1e-3.
        self.image_processor = CLIPImageProcessorPil.from_pretrained(model)
        self.prefix, self.device, self.batch_size = prefix, device, batch_size

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d)."""
        limit = self.model.config.text_config.max_position_embeddings

        def features(batch: list[str]):
            texts = [self.prefix + text for text in batch]
            inputs = self.tokenizer(
                [encodable(text) for text in texts],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            return self.model.get_text_features(**inputs.to(self.device))

        distinct, where = np.unique(np.array(texts, dtype=object), return_inverse=True)
        return self._unit(distinct.tolist(), features)[where]

    def images(self, images: Sequence) -> np.ndarray:
        """(n, d)."""

        def features(batch: list):
            inputs = self.image_processor([_opened(image) for image in batch], return_tensors="pt")
            return self.model.get_image_features(**inputs.to(self.device))

        return self._unit(list(images), features)

    def _unit(self, items: list, features) -> np.ndarray:
        import torch

        with torch.inference_mode():
            parts = [
                features(items[i : i + self.batch_size]).pooler_output for i in range(0, len(items), self.batch_size)
            ]
        vectors = torch.cat(parts).cpu().double().numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _opened(image):
    """An upright RGB image."""
    from PIL import Image, ImageOps

    if isinstance(image, str | PathLike):
        with Image.open(image) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    return image.convert("RGB")
