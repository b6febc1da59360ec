"""LoRA beside a linear layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bridge import layout
from ..tree import Wrapper, bare
from .lowrank import add_low_rank, lora_linear, new_seed


class LowRank(Wrapper):
    """A wrapper that adds s · B A to its base's weight: `lora_A` [rank, …] and `lora_B` […, rank].

    They are float32 beside a base of fewer than 32 bits, else of the base's dtype. While `active` is false the wrapper
    is its base alone.
    """

    learning_rate_ratio = 1.0
    rescales = False  # whether it does more to the base's answer than to add to it

    def __init__(self, base: nn.Module, shape_A: tuple, shape_B: tuple, scale: float, dropout: float):
        super().__init__(base)
        self.scale, self.dropout = scale, dropout
        dtype = base.weight.dtype if base.weight.dtype in (torch.float32, torch.float64) else torch.float32
        factory = {"dtype": dtype, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(shape_A, **factory))
        self.lora_B = nn.Parameter(torch.empty(shape_B, **factory))
        self.register_parameter("original", None)  # the base's weight while merged

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    def learning_rate_factor(self, name: str) -> float:
        return self.learning_rate_ratio if name == "lora_B" else 1.0

    @property
    def unmergeable(self) -> str | None:
        beneath = self.base
        while isinstance(beneath, Wrapper):
            if getattr(beneath, "rescales", False):
                return "the DoRA beneath would rescale what is merged; detach one of them"
            beneath = beneath.base
        return None

    def product(self) -> Tensor:
        """What is added to the weight, in the weight's shape."""
        raise NotImplementedError

    def merged(self, weight: Tensor) -> Tensor:
        """The weight with the part's effect in it, in the part's dtype."""
        product = self.product()
        return weight.to(product.dtype) + product

    @torch.no_grad()
    def merge(self) -> None:
        """Change the base's weight; the original is kept aside, so that `unmerge` restores every bit."""
        base = bare(self)
        self.original = base.weight
        merged = self.merged(base.weight).to(base.weight.dtype)
        base.weight = nn.Parameter(merged, requires_grad=base.weight.requires_grad)
        self.active = False

    def unmerge(self) -> None:
        bare(self).weight, self.original = self.original, None
        self.active = True

    def keep_merged(self) -> None:
        bare(self).weight.requires_grad_(self.original.requires_grad)
        self.original = None

    def extra_repr(self) -> str:
        return f"rank={len(self.lora_A)}, scale={self.scale:g}, dropout={self.dropout:g}"


class LoRALinear(LowRank):
    """Stands in for the linear-like module `base`: x [..., in] -> y [..., out].

    With `offset`, a pair A₀ and B₀, the product is s · (B A - B₀ A₀): PiSSA and OLoRA start from factors of W, and what
    those take from W is taken here, so that W stays as it is.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        self_layout = layout(base)
        shapes = (rank, self_layout.in_features), (self_layout.out_features, rank)
        super().__init__(base, *shapes, scale, dropout)
        self.layout = self_layout
        self.probe = None  # see `lora_linear`
        self.register_buffer("offset_A", None, persistent=False)
        self.register_buffer("offset_B", None, persistent=False)

    def training_state(self) -> dict[str, Tensor]:
        return {} if self.offset_A is None else {"offset_A": self.offset_A, "offset_B": self.offset_B}

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole product, the offset's included."""
        if self.offset_A is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.offset_A]), torch.cat([self.lora_B, -self.offset_B], 1)

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        return self._answer(base, x, base.bias) if self.active else base(x)

    def _answer(self, base: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        seed = new_seed() if self.training and self.dropout else None
        low_rank = *self.factors(), self.scale, self.dropout, seed, self.probe
        if self.layout.plain and not (base._forward_hooks or base._forward_pre_hooks):
            W = base.weight.t() if self.layout.transposed else base.weight
            return lora_linear(x, W, bias, *low_rank, getattr(base, "multiply", F.linear))
        y = base(x)
        return add_low_rank(y if bias is base.bias else y - base.bias, x, *low_rank)

    @property
    def unmergeable(self) -> str | None:
        if self.layout.quantized:
            return f"a quantized {type(bare(self)).__name__} cannot be merged; load the base model unquantized"
        return super().unmergeable

    def product(self) -> Tensor:
        A, B = self.factors()
        product = self.scale * (B @ A)
        return product.t() if self.layout.transposed else product
