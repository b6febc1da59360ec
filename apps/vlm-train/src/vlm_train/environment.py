"""Where a run ran, as `run.json` records it: what a number of speed or memory depends on beside the configuration."""

import os
import platform
import sys
from typing import Any

import psutil
import torch

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "HF_HUB_OFFLINE")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Machine, device and what is set for torch; memory in bytes."""
    found = {
        "command": sys.argv[1:],
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": str(device),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device_name": properties.name,
            "device_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
