"""Gradient checkpointing of a frozen GIT.

transformers makes the frozen input embeddings require a gradient, by a hook without which checkpointed layers would get
none and which stays when checkpointing ends; and GIT then adds positions to them in place, which torch refuses for a
leaf. The sum with another leaf is none.
"""

import sys

import torch
from torch import Tensor, nn


def no_leaf(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
    """A forward hook for GIT's word embeddings, which counts only where another one is."""
    if torch.is_grad_enabled() and len(module._forward_hooks) > 1:
        return output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
    return None


def allow_checkpointing(model: nn.Module) -> list:
    """Handles of the hooks that it takes; none for other models."""
    git = getattr(sys.modules.get("transformers.models.git.modeling_git"), "GitEmbeddings", ())
    embeddings = [module.word_embeddings for module in model.modules() if isinstance(module, git)]
    return [module.register_forward_hook(no_leaf) for module in embeddings]
