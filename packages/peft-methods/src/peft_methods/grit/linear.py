"""LoRA beside a linear layer that measures its curvature while it trains."""

import torch
from torch import Tensor, nn

from ..lora import LoRALinear
from .curvature import Curvature, count


class GRITLinear(LoRALinear):
    """A `LoRALinear` with the `curvature` of its product. Nothing is measured before `measure` was called.

    `steps` counts the optimizer's steps, and `votes` the latest rebalancings in a row that found the rank too large.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__(base, rank, scale, dropout)
        self.apart = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.curvature = Curvature(self.lora_A)
        self.steps, self.votes = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        self._backward_pass = None

    def measure(self, apart: bool) -> None:
        """Measure in every backward pass from now on; or, `apart` from training, only while `probe` is set."""
        self.apart = apart
        self.probe = None if apart else self.count_rows

    def count_rows(self, h: Tensor, dh: Tensor, s: float, kept: float) -> None:
        """See `lora_linear`. It runs in the backward pass, so that gradient checkpointing changes nothing."""
        A = self.lora_A
        if not A.requires_grad:
            return
        # What is measured belongs to what is in `.grad`: where gradients were dropped (a step skipped by a GradScaler,
        # a trial), so is this. A module may be called several times, and `.grad` comes after the last of them.
        current = torch._C._current_graph_task_id()  # as torch's own register_multi_grad_hook
        if current != self._backward_pass:
            if A.grad is None and not self.apart:
                self.curvature.clear()
            count([self.curvature])  # of many micro-batches only the latest is held
        self._backward_pass = current
        if h.shape[1] > len(A):  # what comes after is an offset's, which does not train
            h, dh = h[:, : len(A)], dh[:, : len(A)]
        self.curvature.add(h, dh, s, kept)

    def training_state(self) -> dict[str, Tensor]:
        state = {"curvature": self.curvature.average, "curvature_weight": self.curvature.weight}
        return super().training_state() | state | {"steps": self.steps, "votes": self.votes}

    @torch.no_grad()
    def make_room(self, shapes: dict) -> None:
        if not shapes:
            return
        A, B = (shapes.get(name, parameter.shape) for name, parameter in self.adapter_parameters().items())
        if self.lora_A.shape != A and (A[1:], B) == (self.lora_A.shape[1:], (len(self.lora_B), A[0])):
            set_value(self.lora_A, self.lora_A.new_zeros(A))
            set_value(self.lora_B, self.lora_B.new_zeros(B))
        self._start_afresh()

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        self.curvature.to(self.lora_A.device)
        return self


@torch.no_grad()
def set_value(parameter: nn.Parameter, value: Tensor) -> None:
    """Put `value` in the parameter, which takes its shape; without a gradient then, if it is another one."""
    if parameter.shape == value.shape:
        parameter.copy_(value)
        return
    parameter.grad = None
    # A graph that is still alive (the loss, in some variable) makes torch expect a gradient of the old shape, until the
    # parameter changes its dtype.
    value = value.to(parameter).contiguous()
    parameter.data = value.new_empty(0, dtype=torch.int8 if value.dtype == torch.float16 else torch.float16)
    parameter.data = value
