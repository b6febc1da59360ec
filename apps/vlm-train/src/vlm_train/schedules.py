"""Learning-rate schedules: the share of the peak rate that a step has.

    warm-up    rises linearly over the first steps, (step + 1) / rising
    cosine     ½ + ½ cos(π p)          Loshchilov and Hutter, "SGDR" (arXiv 1608.03983), equation 5, without restarts
    linear     1 - p
    constant   1

with p the part of the steps behind the warm-up that is done, 0 at its first. Where the time for a run is short of its
steps, the loop counts the steps by the clock, in parts of a step too.
"""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def share_of_peak(step: float, steps: int, warmup: float, schedule: str = "cosine") -> float:
    """The share of the peak learning rate in step `step` (from 0) of `steps`; `warmup` is a share of the steps."""
    rising = round(warmup * steps)
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return SCHEDULES[schedule](min(1.0, (step - rising) / max(1, steps - rising)))
