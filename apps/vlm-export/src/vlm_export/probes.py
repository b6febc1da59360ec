"""A few pictures with texts, on which models are compared by their logits.

Only transformers, torch and Pillow are used here, and models are called as any program calls them: what is compared is
what others will get.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

COUNT = 4
SIDE = 336  # pixels of the longer side: enough to compare by
POSITIONS = 16  # the last ones, where the text is


@dataclass(frozen=True)
class Probe:
    """A picture's file, and what is asked and answered about it."""

    image: str
    question: str
    answer: str


@dataclass(frozen=True)
class Difference:
    """Between the logits of two models on the same positions.

    largest: the largest absolute difference. scale: the largest absolute logit. agreeing: the share of positions with
    the same likeliest token.
    """

    largest: float
    scale: float
    agreeing: float

    @property
    def relative(self) -> float:
        return self.largest / self.scale

    def __str__(self) -> str:
        return f"{self.largest:.2g} at most of {self.scale:.3g}; likeliest token the same at {self.agreeing:.0%}"


def make_probes(predictions: Path | None, folder: Path) -> list[Probe]:
    """Write pictures and `probes.json` to `folder`: of a run's validation rows where their pictures are files, else a
    drawn one with a question that suits any picture."""
    probes = []
    for number, (image, question, answer) in enumerate(_rows(predictions)):
        image.thumbnail((SIDE, SIDE))
        image.save(folder / f"{number}.png")
        probes.append(Probe(f"{number}.png", question, answer))
        if len(probes) == COUNT:
            break
    (folder / "probes.json").write_text(json.dumps([asdict(probe) for probe in probes]), encoding="utf-8")
    return probes


def _rows(predictions: Path | None) -> Iterator[tuple[Image.Image, str, str]]:
    lines = predictions.read_text(encoding="utf-8").splitlines() if predictions and predictions.is_file() else []
    found = 0
    for row in map(json.loads, lines):
        if row.get("image"):
            try:
                image = Image.open(row["image"]).convert("RGB")
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
                continue
            found += 1
            yield image, row.get("prompt") or "", next(iter(row.get("references", [])), "")
    if not found:
        colors = Image.radial_gradient("L").resize((SIDE, SIDE)), Image.linear_gradient("L").resize((SIDE, SIDE))
        yield Image.merge("RGB", (colors[0], colors[1], colors[1].rotate(90))), "what color is it?", "it is blue"


def read_probes(folder: Path) -> list[Probe]:
    return [Probe(**probe) for probe in json.loads((folder / "probes.json").read_text(encoding="utf-8"))]


@torch.no_grad()
def logits_on(model: Any, processor: Any, probes: Sequence[Probe], folder: Path) -> list[Tensor]:
    """Of each probe the logits [positions, vocabulary] of its last `POSITIONS` tokens, in float32 or more, on the CPU.

    `processor`: transformers', or anything with an `image_processor` and a `tokenizer` for an encoder-decoder.
    """
    model.eval()
    found = []
    for probe in probes:
        image = Image.open(folder / probe.image).convert("RGB")
        inputs = _inputs(processor, image, probe, model.config)
        moved = {name: value.to(model.device) for name, value in inputs.items()}
        moved = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in moved.items()}
        logits = model(**moved).logits[0, -POSITIONS:]
        found.append(logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu())
    return found


def _inputs(processor: Any, image: Image.Image, probe: Probe, config: Any) -> dict[str, Tensor]:
    text = f"{probe.question} {probe.answer}".strip()
    if not callable(processor):
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        ids = processor.tokenizer(f"{processor.tokenizer.bos_token}{text}", return_tensors="pt").input_ids
        return {"pixel_values": pixels, "decoder_input_ids": ids}
    if getattr(processor, "chat_template", None):
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": probe.question}]}
        told = {"role": "assistant", "content": [{"type": "text", "text": probe.answer}]}
        text = processor.apply_chat_template([asked, told], tokenize=False)
    inputs = dict(processor(images=[image], text=[text], return_tensors="pt"))
    if getattr(config.get_text_config(), "is_encoder_decoder", False):  # BLIP-2 with T5
        inputs["decoder_input_ids"] = inputs["input_ids"][:, -POSITIONS:]
    return inputs


def difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> Difference:
    """Between two models' logits on the same probes."""
    first, second = torch.cat(list(one)).double(), torch.cat(list(other)).double()
    largest, scale = (first - second).abs().max(), first.abs().max()
    agreeing = (first.argmax(-1) == second.argmax(-1)).double().mean()
    return Difference(float(largest), float(scale), float(agreeing))
