"""Peak memory of this process."""

import sys

import psutil
import torch


def peak_memory(device: torch.device) -> int:
    """Bytes held at most: of the accelerator if the model is on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
