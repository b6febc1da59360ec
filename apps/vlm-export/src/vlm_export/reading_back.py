"""What was written, loaded by a process of its own."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

import vlm_models
from vlm_export.errors import ExportError
from vlm_export.probes import Difference, read_probes

# How far two orders of the same sums can lie apart, relative to the largest logit, by what the numbers are rounded to.
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def read_back(
    out: Path, pictures: Path, device: str, base: str | None, dtype: str, revision: str | None
) -> list[Tensor]:
    """The logits on the probes in `pictures` of the model in `out`, or of `base` with PEFT's adapter in `out`.

    Raises ExportError if the process fails.
    """
    arguments = [str(out), str(pictures), device]
    if base is not None:
        arguments += [vlm_models.plan(base, device="cpu", revision=revision).place, dtype, revision or ""]
    line = [sys.executable, "-m", "vlm_export.reload", *arguments]
    process = subprocess.run(line, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        said = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise ExportError(f"--check: {out} cannot be loaded again: {said[-1]}")
    found = load_file(pictures / "logits.safetensors")
    return [found[str(number)] for number in range(len(read_probes(pictures)))]


def check(found: Difference, dtype: str, out: Path) -> Difference:
    """The difference, if it is one of rounding. Raises ExportError otherwise."""
    if not found.relative <= ROUNDING[dtype]:
        raise ExportError(f"--check: {out} does not compute what was exported: logits differ by {found}")
    return found
