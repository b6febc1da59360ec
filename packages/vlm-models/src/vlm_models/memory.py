"""How much memory training a model will take, before it is loaded.

    weights      every parameter in its number format; 4 or 8 bits in the quantized linear layers
    activations  what the layers keep for the backward pass, for the tokens of one batch
    optimizer    of the trained parameters: themselves in float32, their gradients, AdamW's two moments
    head         logits and their gradient, which stand in parts (`head_loss.py`)

Activations follow Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 1
without the attention matrix, which fused attention does not keep. Their transformer has a feed-forward width of 4; what
is counted here is what goes into and comes out of each linear layer, so that any width will do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vlm_models.head_loss import ELEMENTS
from vlm_models.vlm import VLM, is_linear

TOKENS = 4096  # of a batch, images included: for example 8 rows of 512
TRAINED = 0.005  # part of the parameters: LoRA of rank 16 on all linear layers is about that
NF4 = 0.5 + (1 + 4 / 256) / 64  # bytes for a weight: 4 bits, and for 64 of them a scale of 8 bits, quantized by 256s
ADAMW = 16  # bytes for a trained parameter
EXHAUSTED = ("can't allocate memory", "out of memory")  # a CPU's allocator says, and Apple's


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    weights: int
    activations: int
    optimizer: int
    head: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.optimizer + self.head

    def __str__(self) -> str:
        parts = {name: getattr(self, name) / 2**30 for name in ("weights", "activations", "optimizer", "head")}
        named = ", ".join(f"{name} {size:.1f}" for name, size in parts.items())
        return f"{self.total / 2**30:.1f} GiB ({named})"


def predict_memory(
    vlm: VLM,
    quantization: str = "none",
    dtype: torch.dtype | None = None,
    tokens: int = TOKENS,
    trained: int | None = None,
) -> Memory:
    """Memory of training a model, which may be a skeleton on the meta device (`skeleton`), its vision part frozen.

    Args:
        quantization: "none", "nf4" or "int8", of the language part's linear layers.
        dtype: of the other weights and of the activations; by default the model's own.
        tokens: of a batch in the language part, images included.
        trained: number of trained parameters; by default LoRA's usual half percent.
    """
    size = (dtype or vlm.model.dtype).itemsize
    modules = dict(vlm.model.named_modules())
    linear = {name: modules[name] for name in vlm.targets("language")}
    total = sum(parameter.numel() for parameter in vlm.model.parameters())
    weights = total * size
    if quantization != "none":
        for module in linear.values():
            rows, columns = _shape(module)
            in_bytes = NF4 * rows * columns if quantization == "nf4" else rows * columns + 4 * rows
            weights += round(in_bytes) - rows * columns * size
    activations = tokens * size * sum(sum(_shape(module)) for module in linear.values())
    vocabulary = _shape(vlm.head)[0]
    logits = min(tokens * vocabulary, ELEMENTS)
    if trained is None:
        trained = round(TRAINED * total)
    return Memory(weights, activations, ADAMW * trained, logits * (size + 2 * 4))


@contextmanager
def out_of_memory_known() -> Iterator[None]:
    """Inside, memory that does not suffice is a torch.OutOfMemoryError also where torch has only words for it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not any(words in str(error) for words in EXHAUSTED):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def _shape(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    if is_linear(module) and not isinstance(module, nn.Linear):
        return module.nf, module.nx  # GPT-2's Conv1D
    return module.out_features, module.in_features
