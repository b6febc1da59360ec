"""Loaded models that answer, each alone though they share the weights of a base."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from PIL import Image

import peft_methods as pm
import vlm_data
import vlm_models
from vlm_demo.sources import Source, row_of
from vlm_runs import RunError
from vlm_runs.adapters import Adapter, needs_peft, put_on

UserError = (
    vlm_data.DataError,
    vlm_data.ImageError,
    vlm_models.ModelError,
    pm.AdapterError,
    pm.TargetError,
    RunError,
)


@dataclass(frozen=True)
class Settings:
    """Of generation. attention: whether to draw where the model looks."""

    max_new_tokens: int = 48
    num_beams: int = 1
    temperature: float = 0.0
    seed: int = 0
    attention: bool = True


@dataclass(frozen=True)
class Said:
    """An answer; the drawing where the model looked; why there is none."""

    text: str
    looks: Image.Image | None = None
    note: str = ""


@dataclass(frozen=True)
class Loaded:
    """A model under a name, with its own adapters among those that the model carries."""

    name: str
    vlm: vlm_models.VLM
    adapters: Sequence[Adapter] = ()

    def answer(self, image: str, question: str, settings: Settings) -> Said:
        """Answer the question about the picture in this file, or describe it. Raises one of `UserError`."""
        vlm, row = self.vlm, row_of(image, question)
        collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
        batch = vlm.to_device(collate.prompts([row]))
        try:
            with self._alone(), vlm_models.out_of_memory_known():
                answers = vlm.generate(
                    batch, settings.max_new_tokens, settings.num_beams, settings.temperature, seed=settings.seed
                )
                return self._drawn(batch, row, answers) if settings.attention else Said(answers[0].text)
        except torch.OutOfMemoryError as error:
            raise vlm_models.ModelError(
                f"{self.name}: out of memory on {vlm.device}; use a smaller picture, or --device cpu"
            ) from error

    def _drawn(self, batch: vlm_models.Batch, row: dict, answers: list[vlm_models.Answer]) -> Said:
        (answer,) = answers
        if not vlm_models.words_of(self.vlm, answer):
            return Said(answer.text, note="there are no words to draw")
        try:
            (maps,) = vlm_models.attention_maps(self.vlm, batch, answers)
        except vlm_models.ModelError as error:  # there are models of which no grid is known: they answer all the same
            return Said(answer.text, note=str(error))
        return Said(answer.text, vlm_models.draw_answer(self.vlm, answer, maps, vlm_data.decode(row["image"])))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, what others put on the shared base is switched off."""
        with ExitStack() as stack:
            for attachment in pm.attachments(self.vlm.model):
                if attachment not in self.adapters:
                    stack.enter_context(attachment.disabled())
            yield


def load_all(sources: Sequence[Source], device: str) -> list[Loaded]:
    """Load each base once, and put the adapters on it; one that does not go beside others gets a base of its own."""
    bases: dict[tuple, vlm_models.VLM] = {}
    loaded = []
    for source in sources:
        if source.adapter is not None and needs_peft(source.adapter):  # PEFT does not switch off what others put on
            vlm = _load_base(source, device)
            loaded.append(Loaded(source.name, vlm, put_on(vlm.model, source.adapter)))
            continue
        shared = source.base in bases
        vlm = bases.get(source.base) or bases.setdefault(source.base, _load_base(source, device))
        try:
            adapters = _adapters(vlm, source)
        except (pm.AdapterError, pm.TargetError):
            if not shared:
                raise
            vlm = _load_base(source, device)
            adapters = _adapters(vlm, source)
        loaded.append(Loaded(source.name, vlm, adapters))
    return loaded


def _load_base(source: Source, device: str) -> vlm_models.VLM:
    vlm = vlm_models.load(source.model, source.quantization, device, source.dtype, source.revision)
    vlm_data.limit_image_tokens(vlm.processor, source.max_image_tokens)
    return vlm.eval()


def _adapters(vlm: vlm_models.VLM, source: Source) -> list[Adapter]:
    return put_on(vlm.model, source.adapter) if source.adapter else []
