"""The keys and values of a prefix: parameters, or what a small network makes of an embedding.

    P = E                              E [length, 2 · heads · head_dim] trained directly
    P = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂      E [length, heads · head_dim], the re-parameterisation

Li and Liang (arXiv 2101.00190), section 4.3. The first half of P are the keys.
"""

import torch
from torch import Tensor, nn

STD = 0.02  # small beside real keys and values: at the start a prefix token weighs like any other, and adds nothing


class PrefixStates(nn.Module):
    """`keys` and `values` [length, heads, head_dim], normally distributed with a standard deviation of 0.02."""

    def __init__(self, length: int, heads: int, head_dim: int, **factory):
        super().__init__()
        self.keys = nn.Parameter(torch.empty(length, heads, head_dim, **factory))
        self.values = nn.Parameter(torch.empty(length, heads, head_dim, **factory))
        for parameter in (self.keys, self.values):
            nn.init.normal_(parameter, std=STD)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class ReparameterizedStates(nn.Module):
    """`embedding` [length, heads · head_dim] is standard normal; the layers start as torch's linear layers do."""

    def __init__(self, length: int, heads: int, head_dim: int, hidden: int, **factory):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        width = heads * head_dim
        self.embedding = nn.Parameter(torch.empty(length, width, **factory))
        nn.init.normal_(self.embedding)
        self.inner = nn.Linear(width, hidden, **factory)
        self.outer = nn.Linear(hidden, 2 * width, **factory)

    def forward(self) -> tuple[Tensor, Tensor]:
        states = self.outer(torch.tanh(self.inner(self.embedding)))
        keys, values = states.view(len(states), 2, self.heads, self.head_dim).unbind(1)
        return keys, values

    @torch.no_grad()
    def folded(self) -> PrefixStates:
        """The keys and values as they are now, as parameters."""
        keys, values = self()
        plain = PrefixStates(*keys.shape, dtype=keys.dtype, device=keys.device)
        plain.keys.copy_(keys)
        plain.values.copy_(values)
        return plain
