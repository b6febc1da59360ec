"""What two processes do in `test_processes.py`; started by `accelerate launch processes_driver.py FOLDER PORT`.

The launch asks for FSDP, which is switched off here for the runs that hold the whole model in each process, and asked
for by a DeepSpeed configuration in others.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import vlm_models
import vlm_train.run
from vlm_train.engine import evaluate
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


def sharding(by: str | None) -> None:
    """What `accelerate launch` sets for "fsdp", or for a DeepSpeed configuration of this name."""
    deepspeed = by is not None and by.endswith(".json")
    os.environ["ACCELERATE_USE_FSDP"] = str(by == "fsdp").lower()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(deepspeed).lower()
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = by if deepspeed else "none"


def killed_while_sharded(folder: Path, port: str) -> None:
    """A run of its own in children, of which that of process 1 is killed in a backward pass of the fourth step.

    No launcher ends the other one. What it says, and after how many seconds, is in `killed-while-sharded.txt`.
    """
    child = os.fork()
    if child > 0:
        os.waitpid(child, 0)
        return
    os.environ.update(MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE="False")
    sharding(str(folder / "zero-3.json"))
    killed = folder / "time-of-death"
    if os.environ["RANK"] == "1":

        def die(*_: object) -> None:
            killed.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

        in_step(7, die, backward=True)
    try:
        run(config(folder, "killed-while-sharded", cache_dir=str(folder / "another")))
    except Exception as error:
        seconds = time.time() - float(killed.read_text())
        (folder / "killed-while-sharded.txt").write_text(f"{seconds} {type(error).__name__}: {error}")
    os._exit(0)


def sharded(folder: Path, rank: int) -> None:
    """A run whose evaluations take one pass here, two there; and one that goes on, its texts made by transformers."""
    shard, size = vlm_train.run.shard, evaluate.BATCH

    def counted(vlm, *others):
        shard(vlm, *others)
        layers = vlm.model.git.encoder.layer
        held = sum(one.to_local().nbytes for one in layers.parameters() if hasattr(one, "to_local"))
        (folder / f"held-{rank}").write_text(str(held))

    vlm_train.run.shard, evaluate.BATCH = counted, 8
    run(config(folder, "sharded"))
    vlm_models.VLM.packs = False
    sharding(str(folder / "zero-3.json"))
    run(config(folder, "begun-by-1-unsharded"), resume=True)
    vlm_models.VLM.packs = True
    vlm = vlm_models.load(
        str(folder / "no-pooler"), device="cpu"
    )  # transformers may leave weights out of some processes
    (folder / f"loaded-{rank}").write_text(str(sum(parameter.numel() for parameter in vlm.parameters())))
    vlm_train.run.shard, evaluate.BATCH = shard, size


def in_step(number: int, act: Callable[..., object], backward: bool = False) -> None:
    """Do something in a forward (or backward) pass of training, by its number."""
    plain, calls = vlm_models.VLM.forward, []

    def forward(vlm, batch):
        now = False
        if vlm.training:
            calls.append(batch)
            now = len(calls) == number
        if now and not backward:
            act()
        loss, tokens = plain(vlm, batch)
        if now and backward:
            loss.register_hook(act)
        return loss, tokens

    vlm_models.VLM.forward = forward


def stopped(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as end:
        return end.code
    return 0


def main(folder: Path, port: str) -> None:
    killed_while_sharded(folder, port)
    rank, plain = int(os.environ["RANK"]), vlm_models.VLM.forward
    sharding(None)
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
    sharding("fsdp")
    sharded(folder, rank)
    sharding(str(folder / "zero-2.json"))
    if rank == 1:  # one of them is told to stop, both do
        in_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code = stopped(lambda: run(config(folder, "begun-by-2")))
    (folder / f"code-{rank}").write_text(str(code))
    vlm_models.VLM.forward = plain
    sharding(None)
    if rank == 1:
        in_step(7, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(config(folder, "killed"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
