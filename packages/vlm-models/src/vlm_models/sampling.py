"""How the next token is chosen."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlm_models.errors import ModelError

# Logits [rows, words] and which rows of the batch these are -> a word's id for each [rows].
Choose = Callable[[Tensor, Sequence[int]], Tensor]


def greedy(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """The likeliest."""
    return logits.argmax(-1)


def sampler(count: int, temperature: float, top_p: float, seed: int | Sequence[int]) -> Choose:
    """Nucleus sampling (Holtzman et al. 2020): of the likeliest words that together have `top_p`.

    Each of `count` rows draws one number a token, from a generator of its own: the others have no part in its answer.
    """
    seeds = [seed * 1_000_003 + row for row in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ModelError(f"{len(seeds)} seeds for {count} rows; give one seed, or one for each row")
    generators = [torch.Generator().manual_seed(one) for one in seeds]

    def choose(logits: Tensor, rows: Sequence[int]) -> Tensor:
        draws = torch.stack([torch.rand((), generator=generators[row], dtype=torch.float64) for row in rows])
        likeliest, words = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
        if likeliest.device.type == "mps":  # which has no float64
            likeliest, words = likeliest.cpu(), words.cpu()
        likeliest = likeliest.double()  # in float32 the sum of 152 thousand words is off by more than some have
        draws = draws.to(likeliest.device)
        reached = likeliest.cumsum(-1)
        nucleus = likeliest.masked_fill(reached - likeliest >= top_p, 0)
        reached = nucleus.cumsum(-1)
        place = torch.searchsorted(reached, draws[:, None] * reached[:, -1:], right=True)
        place = place.minimum((nucleus > 0).sum(-1, keepdim=True) - 1)
        return words.gather(-1, place)[:, 0].to(logits.device)

    return choose
