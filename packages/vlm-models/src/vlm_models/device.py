"""Which device and which number format a model runs in."""

import torch

from vlm_models.errors import ModelError

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(device: str) -> torch.device:
    """ "auto" takes CUDA, MPS or XPU where there is one, else the CPU."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} is not available here; use 'auto' or 'cpu'") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is float32 on a CPU, where bfloat16 is slow or emulated, and bfloat16 elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; known: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a CUDA or XPU device; None where that is not told."""
    if device.type not in ("cuda", "xpu"):
        return None
    return getattr(torch, device.type).mem_get_info(device)[0]
