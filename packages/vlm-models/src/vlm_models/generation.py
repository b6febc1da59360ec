"""Answers to prompts: greedy, sampled or found by beams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_models.decoding import decode
from vlm_models.errors import ModelError
from vlm_models.sampling import Choose, greedy, sampler

if TYPE_CHECKING:
    from vlm_models.vlm import VLM, Batch


@dataclass(frozen=True)
class Answer:
    """What a model answers.

    text: without special tokens. token_ids: the tokens, with the one that ends the answer where it ended.
    token_logprobs: of each token, in nats, under the model as it is (temperature 1, all words).
    finish_reason: "stop" at an end token, "length" where `max_new_tokens` or the model's positions were used up.
    """

    text: str
    token_ids: list[int]
    token_logprobs: list[float]
    finish_reason: Literal["stop", "length"]


def generate(
    vlm: "VLM",
    batch: "Batch",
    max_new_tokens: int,
    num_beams: int,
    temperature: float,
    top_p: float,
    seed: int | Sequence[int],
) -> list[Answer]:
    """See `VLM.generate`."""
    if max_new_tokens < 1 or num_beams < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ModelError("generate takes max_new_tokens >= 1, num_beams >= 1, temperature >= 0 and 0 < top_p <= 1")
    if num_beams > 1 and temperature > 0:
        raise ModelError("beams are searched without sampling; give num_beams > 1 or temperature > 0, not both")
    limits = _limits(vlm, batch, max_new_tokens)
    choose = sampler(len(limits), temperature, top_p, seed) if temperature > 0 else greedy
    if num_beams > 1 or not vlm.packs:
        return _by_transformers(vlm, batch, min(limits), num_beams, choose)
    return _answers(vlm, *decode(vlm, batch, limits, choose))


def answered(batch: "Batch", token_ids: Sequence[Sequence[int]]) -> tuple[dict[str, Any], Tensor]:
    """The batch of prompts with answers behind them, and the places [rows, tokens] where the answers are predicted.

    Token k of an answer is predicted at place k. Short answers are padded, and so are their places.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    width = max(map(len, token_ids))
    more = torch.tensor([[*answer, *[0] * (width - len(answer))] for answer in token_ids], device=ids.device)
    real = torch.tensor([[1] * len(answer) + [0] * (width - len(answer)) for answer in token_ids], device=ids.device)
    whole = {**batch, "input_ids": torch.cat([ids, more], 1), "attention_mask": torch.cat([mask, real.to(mask)], 1)}
    whole["labels"] = F.pad(more.masked_fill(real == 0, -100), (ids.shape[1], 0), value=-100)
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1, keepdim=True)
    behind = torch.arange(ids.shape[1], ids.shape[1] + width - 1, device=ids.device).expand(len(ids), -1)
    return whole, torch.cat([last, behind], dim=1)


def together(images: Sequence[Any], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in batches of `size`: rows of one image side by side, and images by their longest prompt.

    So what they share is computed once, and little is padded. Results are to be put back by these numbers.
    """
    longest: dict[Any, int] = {}
    for image, length in zip(images, lengths, strict=True):
        longest[image] = max(length, longest.get(image, 0))
    group = {image: number for number, image in enumerate(longest)}
    order = sorted(range(len(images)), key=lambda row: (longest[images[row]], group[images[row]], lengths[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _limits(vlm: "VLM", batch: "Batch", max_new_tokens: int) -> list[int]:
    """How many tokens each row may get."""
    lengths = batch["attention_mask"].sum(1).tolist()
    room = vlm.max_length
    if room is None:
        return [max_new_tokens] * len(lengths)
    if max(lengths) >= room:
        raise ModelError(f"a prompt of {max(lengths)} tokens leaves no room in {vlm.name}'s {room}; shorten it")
    return [min(max_new_tokens, room - length) for length in lengths]


def _answers(vlm: "VLM", token_ids: list[list[int]], logprobs: list[list[float]]) -> list[Answer]:
    texts = vlm.processor.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
    return [
        Answer(text.strip(), ids, its_logprobs, "stop" if ids[-1] in vlm.end_ids else "length")
        for text, ids, its_logprobs in zip(texts, token_ids, logprobs, strict=True)
    ]


def _by_transformers(vlm: "VLM", batch: "Batch", max_new_tokens: int, num_beams: int, choose: Choose) -> list[Answer]:
    """Beams, and answers of models that do not pack, by transformers.

    Log-probabilities are computed by one more pass over prompts and answers.
    """
    if "pixel_values" not in batch:
        raise ModelError("transformers' beams need the pixels of the images; give a batch without cached features")
    features = batch["features"] if "features" in batch else vlm.encode_images(batch)
    found = vlm._generate(
        {**batch, "features": features},
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        logits_processor=[] if choose is greedy else [_chosen_alone(choose)],
        repetition_penalty=1.0,  # whatever the checkpoint's generation_config says: as greedy answers are
        eos_token_id=sorted(vlm.end_ids),
    ).tolist()
    token_ids = [_until_end(ids, vlm.end_ids) for ids in found]
    whole, places = answered(batch, token_ids)
    hidden = vlm.hidden_states(features, whole)
    logits = vlm.head(hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])))
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    words = whole["input_ids"][:, batch["input_ids"].shape[1] :, None]
    theirs = logprobs.gather(-1, words)[..., 0].tolist()
    return _answers(vlm, token_ids, [row[: len(ids)] for row, ids in zip(theirs, token_ids, strict=True)])


def _chosen_alone(choose: Choose) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of transformers' generation that leaves of all words [rows, words] the chosen ones."""

    def leave(input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = choose(scores, range(len(scores)))[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    return leave


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[:length]
