"""Where the factors start.

    zeros      A Kaiming-uniform, B zero          gaussian   A normal of deviation 1 / rank, B zero
    pissa      the weight's principal part: W ≈ U S Vᵀ, B = U √(S / s), A = √(S / s) Vᵀ
    olora      the weight's QR decomposition: B = Q, A = R

The last two are taken off again, so that training starts at the base model all the same. An embedding has the roles of
A and B exchanged.
"""

import math

import torch
from torch import nn

from ..targets import TargetError
from ..tree import bare
from .embedding import LoRAEmbedding
from .linear import LowRank
from .weights import dense

INITIALIZATIONS = ("zeros", "gaussian", "pissa", "olora")


@torch.no_grad()
def initialize(part: LowRank, how: str) -> None:
    first, second = part.lora_A, part.lora_B
    if isinstance(part, LoRAEmbedding):
        nn.init.zeros_(first)
        nn.init.normal_(second)
        return
    nn.init.zeros_(second)
    if how == "gaussian":
        nn.init.normal_(first, std=1 / len(first))
    elif how == "zeros":
        nn.init.kaiming_uniform_(first, a=math.sqrt(5))
    else:
        _from_weight(part, how)
    if hasattr(part, "start"):
        part.start()


def _from_weight(part: LowRank, how: str) -> None:
    W, rank = dense(bare(part)), len(part.lora_A)
    if how == "pissa":
        U, S, Vt = torch.linalg.svd(W, full_matrices=False)
        root = (S[:rank] / part.scale).sqrt()
        B, A = U[:, :rank] * root, root[:, None] * Vt[:rank]
    else:
        Q, R = torch.linalg.qr(W)
        B, A = Q[:, :rank], R[:rank]
    if len(A) < rank:
        raise TargetError(
            f"rank={rank}: at most {len(A)} with initialization={how!r}; give it a smaller one in rank_pattern"
        )
    part.lora_A.copy_(A)
    part.lora_B.copy_(B)
    part.offset_A, part.offset_B = part.lora_A.clone(), part.lora_B.clone()
