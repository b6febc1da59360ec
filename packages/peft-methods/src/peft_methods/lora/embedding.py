"""LoRA beside an embedding: y = E[i] + s · A[:, i]ᵀ Bᵀ, with A [rank, tokens] zero and B [dim, rank] random."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..targets import TargetError
from ..tree import bare
from .linear import LowRank


class LoRAEmbedding(LowRank):
    """Stands in for an `nn.Embedding`: i [...] -> y [..., dim]. A head that shares E goes on with E alone.

    There is no dropout of token ids. Subclasses that multiply E[i] by their `embed_scale`, as transformers' do, have
    the product multiplied as well. Raises TargetError for those that compute something else.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        if base.max_norm is not None:
            raise TargetError("an embedding with max_norm changes its weight while it runs; leave it out")
        if type(bare(base)).forward is not nn.Embedding.forward and not hasattr(base, "embed_scale"):
            raise TargetError(f"a {type(bare(base)).__name__} has a forward of its own; leave it out")
        super().__init__(base, (rank, base.num_embeddings), (base.embedding_dim, rank), scale, dropout)

    def forward(self, i: Tensor) -> Tensor:
        y = self.base(i)
        if not self.active:
            return y
        h = F.embedding(i, self.lora_A.t(), self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        return y + (self.scale * getattr(self, "embed_scale", 1.0) * F.linear(h, self.lora_B)).to(y.dtype)

    def product(self) -> Tensor:
        return self.scale * (self.lora_B @ self.lora_A).t()
