"""LoRA beside an embedding: y = E[i] + s · A[:, i]ᵀ Bᵀ, with A [rank, tokens] zero and B [dim, rank] random."""

import torch.nn.functional as F
from torch import Tensor, nn

from .linear import LowRank


class LoRAEmbedding(LowRank):
    """Stands in for an `nn.Embedding`: i [...] -> y [..., dim]. A head that shares E goes on with E alone.

    There is no dropout of token ids.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__(base, (rank, base.num_embeddings), (base.embedding_dim, rank), scale, dropout)

    def forward(self, i: Tensor) -> Tensor:
        y = self.base(i)
        if not self.active:
            return y
        h = F.embedding(i, self.lora_A.t(), self.padding_idx)
        return y + (self.scale * F.linear(h, self.lora_B)).to(y.dtype)

    def product(self) -> Tensor:
        return self.scale * (self.lora_B @ self.lora_A).t()
