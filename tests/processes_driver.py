"""What two processes do in `test_processes.py`; started by `accelerate launch processes_driver.py FOLDER`."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import vlm_models
from vlm_train.options.config import TrainConfig
from vlm_train.run import run

# In float64: Adam divides small gradients by themselves, which makes of their rounding what it likes.
# Of 7 rows one process has 3 and the other 4.
OPTIONS = {"model": "tiny-git", "max_steps": 7, "batch_size": 7, "accumulate": 2, "val_rows": 20, "checkpoint_every": 2}
# GRIT measures rows as they are computed with, and those that are packed behind one image share its tokens.
METHODS = {"lora": {}, "grit": {"method": "grit", "rank": 8, "plain": True, "cache_dir": None}}


def config(folder: Path, name: str, **more) -> TrainConfig:
    data = {"data": str(folder / "rows.jsonl"), "device": "cpu", "dtype": "float64", "cache_dir": str(folder / "cache")}
    return TrainConfig(**{**OPTIONS, **data, "out": str(folder / name), **more})


def in_step(number: int, act: Callable[[], object]) -> None:
    """Do something in a forward pass of training, by its number."""
    plain, calls = vlm_models.VLM.forward, []

    def forward(vlm, batch):
        if vlm.training:
            calls.append(batch)
            if len(calls) == number:
                act()
        return plain(vlm, batch)

    vlm_models.VLM.forward = forward


def stopped(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as end:
        return end.code
    return 0


def main(folder: Path) -> None:
    rank, plain = int(os.environ["RANK"]), vlm_models.VLM.forward
    encoded, encode = [], vlm_models.FeatureCache._encode

    def counted(cache, batch):
        for entry in encode(cache, batch):
            encoded.append(entry)
            yield entry

    vlm_models.FeatureCache._encode = counted
    for name, options in METHODS.items():
        run(config(folder, f"{name}-2", **options))
    (folder / f"encoded-first-{rank}").write_text(str(len(encoded)))
    run(config(folder, "begun-by-1"), resume=True)
    (folder / f"encoded-then-{rank}").write_text(str(len(encoded)))
    if rank == 1:  # one of them is told to stop, both do
        in_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code = stopped(lambda: run(config(folder, "begun-by-2")))
    (folder / f"code-{rank}").write_text(str(code))
    vlm_models.VLM.forward = plain
    if rank == 1:
        in_step(7, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(config(folder, "killed"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
