"""LoRA beside a 2-D convolution: y = W ∗ x + s · B (A ∗ x), A with the kernel of W and `rank` channels, B of 1 × 1."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..targets import TargetError
from .linear import LowRank


class LoRAConv2d(LowRank):
    """Stands in for an `nn.Conv2d`: x [..., in, height, width] -> y [..., out, height', width']."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        if base.groups != 1:
            raise TargetError(
                f"a convolution in {base.groups} groups: LoRA goes on those of one group only; leave it out"
            )
        shapes = (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank, 1, 1)
        super().__init__(base, *shapes, scale, dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.active:
            return y
        x = F.dropout(x, self.dropout, self.training)
        h = self._conv_forward(x, self.lora_A.to(x.dtype), None)  # the base's stride, padding and dilation
        return y + self.scale * F.conv2d(h, self.lora_B.to(x.dtype))

    def product(self) -> Tensor:
        return self.scale * (self.lora_B.flatten(1) @ self.lora_A.flatten(1)).view_as(self.weight)
