"""Cross-entropy of a head's logits without the logits: they are made, and differentiated, a few rows at a time.

With 152 thousand words, the logits of 1,000 tokens and their gradient take 1.2 GB; here both exist for a few tokens
at a time, and only where labels are. Gradients are computed along with the loss, so that nothing is computed twice.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ELEMENTS = 2**24  # of logits at a time: 64 MB in float32


def head_loss(head: nn.Module, hidden: Tensor, labels: Tensor, elements: int = ELEMENTS) -> Tensor:
    """Σ cross-entropy(head(hidden), labels) in nats: hidden [tokens, dim], labels [tokens] -> [].

    `head` is any module that maps tokens one by one: what is trained in it gets its gradient too. Differentiable once.
    """
    vocabulary = getattr(head, "out_features", None) or head(hidden[:1]).shape[-1]
    rows = max(1, elements // vocabulary)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    differentiated = torch.is_grad_enabled() and (hidden.requires_grad or bool(trained))
    return _HeadLoss.apply(head, hidden, labels, rows, differentiated, *trained)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, head, hidden, labels, rows, differentiated, *trained):
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        d_hidden, d_trained = [], [torch.zeros_like(parameter) for parameter in trained]
        for part, its_labels in zip(hidden.split(rows), labels.split(rows), strict=True):
            part = part.detach().requires_grad_(differentiated)
            with torch.set_grad_enabled(differentiated):
                logits = head(part)
            loss, d_logits = _cross_entropy(logits.detach(), its_labels)
            total += loss
            if not differentiated:
                continue
            gradient, *others = torch.autograd.grad(logits, [part, *trained], d_logits)
            d_hidden.append(gradient)
            for sum_, other in zip(d_trained, others, strict=True):
                sum_ += other
        if differentiated:
            ctx.save_for_backward(torch.cat(d_hidden), *d_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_hidden, *d_trained = (grad.to(tensor.dtype) * tensor for tensor in ctx.saved_tensors)
        return None, d_hidden, None, None, None, *d_trained


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Σ -log p(label), and its gradient p - 1(label) [tokens, vocabulary], in the memory of the log-probabilities."""
    logprobs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    places = labels[:, None]
    loss = -logprobs.gather(1, places).sum()
    d_logits = logprobs.exp_()
    d_logits.scatter_add_(1, places, torch.full_like(places, -1, dtype=d_logits.dtype))
    return loss, d_logits.to(logits.dtype)
