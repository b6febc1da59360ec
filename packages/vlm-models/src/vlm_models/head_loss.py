"""Cross-entropy of a head's logits without the logits: they are made, and differentiated, a few rows at a time.

With 152 thousand words, the logits of 1,000 tokens and their gradient take 1.2 GB; here both exist for `ROWS` tokens or
fewer, and only where labels are. Gradients are computed along with the loss, so that nothing is computed twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ELEMENTS = 2**24  # of logits at a time: 64 MB in float32


def head_loss(head: nn.Module, hidden: Tensor, labels: Tensor, elements: int = ELEMENTS) -> Tensor:
    """Σ cross-entropy(head(hidden), labels) in nats: hidden [tokens, dim], labels [tokens] -> [].

    `head` is any module that maps tokens one by one: what is trained in it gets its gradient too.
    """
    vocabulary = getattr(head, "out_features", None) or head(hidden[:1]).shape[-1]
    rows = max(1, elements // vocabulary)
    if len(hidden) <= rows:
        return _cross_entropy(head, hidden, labels)
    if not torch.is_grad_enabled():
        parts = zip(hidden.split(rows), labels.split(rows), strict=True)
        return torch.stack([_cross_entropy(head, *part) for part in parts]).sum()
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    return _HeadLoss.apply(head, hidden, labels, rows, *trained)


def _cross_entropy(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    logits = head(hidden)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits, labels, reduction="sum")


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, head, hidden, labels, rows, *trained):
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        d_hidden, d_trained = [], [torch.zeros_like(parameter) for parameter in trained]
        for part, its_labels in zip(hidden.split(rows), labels.split(rows), strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = _cross_entropy(head, part, its_labels)
            gradient, *others = torch.autograd.grad(loss, [part, *trained])
            total += loss.detach()
            d_hidden.append(gradient)
            for sum_, other in zip(d_trained, others, strict=True):
                sum_ += other
        ctx.save_for_backward(torch.cat(d_hidden), *d_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_hidden, *d_trained = (grad.to(tensor.dtype) * tensor for tensor in ctx.saved_tensors)
        return None, d_hidden, None, None, *d_trained
