"""The README's figures: `vlm-train --model NAME` on easy-VQA for each tiny model, as a table.

    uv run python tests/benchmarks/bench_easy_vqa.py [NAME ...]

Seconds and memory are of the whole process, imports included; run it on an otherwise idle machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vlm_models import TINY

COLUMNS = ("model", "before", "after", "95 % interval", "trained", "training", "in all", "peak memory")


def measure(name: str, folder: Path) -> list[str]:
    """One row of the table."""
    run = folder / name
    command = [str(Path(sys.executable).parent / "vlm-train"), "--model", name, "--out", str(run)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    record = json.loads((run / "run.json").read_text())
    results, trained = record["results"], record["trained"]
    low, high = results["intervals"]["exact_match"]
    return [
        name,
        f"{results['before']['exact_match']:.3f}",
        f"{results['after']['exact_match']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{trained['parameters'] / trained['of']:.1%}",
        f"{results['seconds']['training']:.0f} s",
        f"{seconds:.0f} s",
        f"{usage.ru_maxrss / 2**20:.2f} GiB",
    ]


def line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or TINY:
            print(line(measure(name, Path(folder))), flush=True)
