"""A vision-language model in three steps: encode images, compute hidden states, apply the head where it is supervised.

    features = vlm.encode_images(batch)            pixels of each distinct image  ->  [tokens, dim] each
    hidden   = vlm.hidden_states(features, batch)  features and tokens            ->  [rows, length, hidden]
    loss, n  = vlm.loss(hidden, batch)             summed cross-entropy in nats, supervised tokens

`vlm(batch)` is the three in one. The loss is summed and comes with its token count, so that dividing by the tokens of
all micro-batches of a step gives exactly the gradient of the whole batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.pytorch_utils import Conv1D

from vlm_models.block_attention import packed_mask
from vlm_models.generation import Answer, generate
from vlm_models.head_loss import head_loss
from vlm_models.last_layer import Span, only_at
from vlm_models.lean import keep_less
from vlm_models.linear import speed_up
from vlm_models.packing import Packing, pack

Batch = Mapping[str, Any]
IGNORE = -100  # the label of positions that are not supervised


class VLM(nn.Module, ABC):
    """A transformers model and its processor behind the interface that all four families share.

    Attributes: `model` and `processor` (transformers objects), `family`, `name` (as it was asked for), `notes` (lines
    on what loading chose or completed, for the user to read).
    """

    family: ClassVar[str]
    # Names within `model`. What runs in `encode_images` is the vision part, connectors to the language model included.
    vision_parts: ClassVar[tuple[str, ...]]
    language_parts: ClassVar[tuple[str, ...]]
    packs: bool = True  # rows of one image behind one copy of it, where their attention takes any mask
    plain: bool = False  # every row in full and the head at every position, to compare the fast paths with

    def __init__(self, model: nn.Module, processor: Any, name: str):
        super().__init__()
        speed_up(model)
        keep_less(model)
        self.model = model
        self.processor = processor
        self.name = name
        self.notes: list[str] = []

    # ---- what a family decides

    @abstractmethod
    def _encode(self, batch: Batch) -> list[Tensor]:
        """Features [tokens, dim] of each distinct image of the batch."""

    @abstractmethod
    def hidden_states(self, features: list[Tensor], batch: Batch) -> Tensor:
        """Last hidden states [rows, length, hidden], one for each position of `input_ids`.

        `batch["cache"]`, if there, is a cache that these tokens are put into; images stand before the first of them.
        """

    @abstractmethod
    def _generate(self, batch: Batch, **options: Any) -> Tensor:
        """Token ids [rows, new tokens] that transformers generates, without the prompt: what beams are searched by."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """hidden -> vocabulary logits."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's own and those that the checkpoint names."""
        named = self.model.generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        return frozenset({self.processor.tokenizer.eos_token_id, *named} - {None})

    def _cache(self) -> Cache:
        """An empty cache of keys and values."""
        return DynamicCache()

    def _placeholders(self, batch: Batch) -> Tensor | None:
        """Which tokens [rows, length] an image stands at; None where it does not stand among them."""
        return None

    def _beside(self, features: list[Tensor]) -> float:
        """To how many tokens of text the work for an image amounts that is not in placeholders, in each row."""
        return 0.0

    def _last_layer(self) -> list[Span]:
        """What of the last layer takes each position by itself, if these are hidden states' positions."""
        return []

    def _positions(self, batch: Batch) -> Tensor:
        """Position ids [..., rows, length] of the tokens."""
        return positions(batch["attention_mask"])

    # ---- what all share

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and token count of a batch; `batch["features"]` (cached) spares the image encoder.

        Rows are packed, those of an image behind one copy of it, which changes nothing but time (`packing.py`).
        """
        features = batch["features"] if "features" in batch else self.encode_images(batch)
        if self.plain:
            return self._plain_loss(self.hidden_states(features, batch), batch)
        packing = self.packing(features, batch)
        if packing is not None:
            places = packing.places
            given = {
                "input_ids": packing.gather(batch["input_ids"]),
                "attention_mask": packed_mask(packing, self.model.dtype),
                "position_ids": packing.gather(self._positions(batch)),
                "image_index": packing.image_index,
            }
        else:
            given = self._predicting_part(batch)
            places = in_order(given["input_ids"])
        chosen, labels = self._predicting(batch, places)
        with self._last_layer_at(chosen):
            hidden = self.hidden_states(features, given)
        return self._loss_at(chosen, labels, hidden)

    def packing(self, features: list[Tensor], batch: Batch) -> Packing | None:
        """How `forward` packs the rows of a training batch; None where each goes through the model by itself."""
        if self.plain or not self.packs:
            return None
        hidden, beside = self.model.config.get_text_config().hidden_size, self._beside(features)

        def work(rows: int, width: int) -> float:
            # A layer's frozen linear parts take 24 hidden² multiplications for a token, forward and backward, and its
            # attention 6 hidden for each key. On a CPU, times of rows of 40 to 800 tokens are within 15 % of this.
            keys = width + beside
            return rows * keys * (1 + keys / (4 * hidden))

        images, sizes = self._placeholders(batch), [len(one) for one in features]
        if images is not None:
            shown = [image for image in batch["image_index"].tolist() for _ in range(sizes[image])]
            if len(shown) != images.sum():
                return None  # the model says so
            images = (images.long() - 1).masked_scatter(images, torch.tensor(shown, device=images.device))
        return pack(batch, batch["labels"] != IGNORE, images, sizes, work)

    def _predicting_part(self, batch: Batch) -> Batch:
        """The batch without its last column: it predicts nothing. An image that ends there stays."""
        placeholders = self._placeholders(batch)
        if placeholders is not None and placeholders[:, -1].any():
            return batch
        return {**batch, **{name: batch[name][:, :-1] for name in ("input_ids", "attention_mask", "labels")}}

    def _plain_loss(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = self.head(hidden)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        wide = torch.promote_types(logits.dtype, torch.float32)
        loss = nn.functional.cross_entropy(logits.to(wide), labels, ignore_index=IGNORE, reduction="sum")
        return loss, (labels != IGNORE).sum()

    def positions_of(self, batch: Batch) -> Tensor:
        """Position ids [..., rows, length]: the batch's own, as in packed rows, or those of its tokens."""
        return batch["position_ids"] if "position_ids" in batch else self._positions(batch)

    def encode_images(self, batch: Batch) -> list[Tensor]:
        """Features [tokens, dim] of each distinct image. Without trainable vision parameters no graph is kept."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_vision):
            return self._encode(batch)

    def loss(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, summed over the supervised tokens, and their number. The head runs on these alone."""
        return self._loss_at(*self._predicting(batch, in_order(batch["labels"])), hidden)

    def _loss_at(self, chosen: Tensor, labels: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = hidden.flatten(0, 1).index_select(0, chosen)
        return head_loss(self.head, hidden, labels), torch.tensor(len(labels), device=labels.device)

    def _predicting(self, batch: Batch, places: Tensor) -> tuple[Tensor, Tensor]:
        """Where, in flattened hidden states, the supervised tokens are predicted, and these tokens; both [tokens].

        `places` [rows, length]: where the hidden states of the rows' tokens stand, of all or of all but the last.
        """
        labels = batch["labels"][:, 1:]  # position t predicts token t + 1
        supervised = labels != IGNORE
        return places[:, : labels.shape[1]][supervised], labels[supervised]

    def _last_layer_at(self, places: Tensor) -> AbstractContextManager[None]:
        """Leaves out of the last layer what no supervised token needs; not under checkpointing, which runs it again."""
        spans = self._last_layer()
        again = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        # Once each: rows with the same prompt are predicted at the same place.
        return nullcontext() if again else only_at(places.unique(), spans)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        max_new_tokens: int = 32,
        num_beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> list[Answer]:
        """The answers to a batch of prompts (`collator.prompts`), greedy by default.

        What the rows of an image begin with is computed once for them all (`decoding.py`), except with beams, which
        transformers searches. Of a checkpoint's generation_config the end tokens are used and nothing else.

        Args:
            max_new_tokens: the longest answer, its end token included.
            num_beams: beams to search with.
            temperature: 0 takes the likeliest word; above, words are drawn from softmax(logits / temperature) ...
            top_p: ... among the likeliest that have this probability together.
            seed: of the draws. With one for each row a row's answer is the same in any batch.

        Raises:
            ModelError: options that do not go together, or a prompt that leaves no room for an answer.
        """
        was_training = self.training
        self.eval()
        try:
            return generate(self, batch, max_new_tokens, num_beams, temperature, top_p, seed)
        finally:
            self.train(was_training)

    def targets(self, part: str = "language") -> list[str]:
        """Names, within `vlm.model`, of the linear layers of a part: "language", "vision" or "all".

        Never the head, and never a ViT's pooler, through which nothing flows here.
        """
        parts = {
            "language": self.language_parts,
            "vision": self.vision_parts,
            "all": self.language_parts + self.vision_parts,
        }
        if part not in parts:
            raise ValueError(f"unknown part {part!r}; known: {', '.join(parts)}")
        inside = tuple(f"{name}." for name in parts[part])
        return [
            name
            for name, module in self.model.named_modules()
            if f"{name}.".startswith(inside) and module is not self.head and "pooler" not in name and is_linear(module)
        ]

    @property
    def trains_vision(self) -> bool:
        """Whether any parameter that `encode_images` uses is trained."""
        inside = tuple(self.vision_parts)
        return any(
            parameter.requires_grad and name.startswith(inside) for name, parameter in self.model.named_parameters()
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_length(self) -> int | None:
        """The longest text in tokens, image placeholders included; None if the positions are unbounded."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def to_device(self, batch: Batch) -> dict[str, Any]:
        """The batch on the model's device."""
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def save(self, folder: str) -> None:
        """Save model and processor with `save_pretrained`; `load(folder)` reads them back."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def in_order(tokens: Tensor) -> Tensor:
    """Where each token [rows, length] stands among the flattened ones."""
    return torch.arange(tokens.numel(), device=tokens.device).view_as(tokens)


def per_row(tensors: Any, image_index: Tensor) -> Tensor:
    """Tensors of distinct images (stacked, or a list of equal shapes), repeated for the rows that show them."""
    stacked = tensors if isinstance(tensors, Tensor) else torch.stack(list(tensors))
    return stacked[image_index]


def begins(batch: Batch) -> bool:
    """Whether the batch is the beginning of its rows: behind what is in a cache, images are not put again."""
    return "cache" not in batch or batch["cache"].get_seq_length() == 0


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that padding on either side gives the same result."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def is_linear(module: nn.Module) -> bool:
    """nn.Linear (bitsandbytes' are subclasses) or transformers' Conv1D, GPT-2's linear layer."""
    return isinstance(module, nn.Linear | Conv1D)
