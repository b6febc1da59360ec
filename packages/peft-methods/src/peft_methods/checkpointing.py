"""Gradient checkpointing of a frozen GIT.

transformers makes the frozen input embeddings require a gradient, without which checkpointed layers would get none, and
GIT then adds positions to them in place, which torch refuses for a leaf. Another sum makes them no leaf.
"""

import sys

import torch
from torch import Tensor, nn


class NoLeaf:
    """A forward hook for GIT's word embeddings."""

    def __init__(self, model: nn.Module):
        self.layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if torch.is_grad_enabled() and any(layer.gradient_checkpointing for layer in self.layers):
            return output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        return None


def allow_checkpointing(model: nn.Module) -> list:
    """Handles of the hooks that it takes; none for other models."""
    git = getattr(sys.modules.get("transformers.models.git.modeling_git"), "GitEmbeddings", ())
    embeddings = [module.word_embeddings for module in model.modules() if isinstance(module, git)]
    return [module.register_forward_hook(NoLeaf(model)) for module in embeddings]
