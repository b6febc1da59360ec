"""What peft's AdaLoRA has besides modules: ranks that move between them as it trains, and a term of the loss.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning" (arXiv 2303.10512).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # of importance and of its uncertainty, for each parameter
PATTERN = "rank_pattern"  # which ranks are left in each module


def orthogonality(tuner: Any) -> Tensor:
    """The mean distance of A and B from orthogonal matrices (its square: equation 4), weighted.

    peft adds it in its own forward pass, which training does not go through.
    """
    distances = []
    for name, parameter in tuner.model.named_parameters():
        if "lora_A." in name or "lora_B." in name:
            product = parameter @ parameter.T if "lora_A." in name else parameter.T @ parameter
            identity = torch.eye(len(product), dtype=product.dtype, device=product.device)
            distances.append(torch.linalg.matrix_norm(product - identity))
    return _config(tuner).orth_reg_weight * torch.stack(distances).mean()


def memory(tuner: Any) -> dict[str, Tensor]:
    """What the next sharing out of ranks depends on beside the parameters, and the ranks that are left."""
    averages = {f"{kind}:{name}": one for kind in AVERAGES for name, one in getattr(tuner.rankallocator, kind).items()}
    return averages | {
        f"{PATTERN}:{name}": torch.tensor(left) for name, left in (_config(tuner).rank_pattern or {}).items()
    }


def remember(tuner: Any, known: Mapping[str, Tensor]) -> None:
    """Bring back what `memory` gave."""
    device = next(tuner.model.parameters()).device
    tuner.rankallocator.reset_ipt()
    pattern = {}
    for key, tensor in known.items():
        kind, name = key.split(":", 1)
        if kind == PATTERN:
            pattern[name] = tensor.tolist()
        else:
            getattr(tuner.rankallocator, kind)[name] = tensor.to(device, copy=True)
            tuner.rankallocator.ipt[name] = torch.zeros_like(tensor, device=device)  # without one, all begin anew
    _config(tuner).rank_pattern = pattern or None


def _config(tuner: Any) -> Any:
    return tuner.peft_config[tuner.trainable_adapter_name]
