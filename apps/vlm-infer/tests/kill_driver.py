"""Runs one command again and again, kills it at random moments with SIGKILL, and tells what came of it as JSON.

    python kill_driver.py FOLDER TRIALS ARGUMENT...

One process imports everything once; each run is a fork of it, in the folder. The output is `whole.jsonl` of a run that
was left alone, `TRIAL.jsonl` of those that were killed twice and then left alone, `two.jsonl` of two processes, and
`fewer.jsonl` of two that were killed, and one that went on.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import vlm_infer.answering
import vlm_infer.infer
from vlm_infer import cli, journal
from vlm_infer.results import Outputs

journal.SECONDS = 0.0  # each batch is a part, so that a few rows are many moments


def start(arguments: list[str], log: Path, environment: dict[str, str] | None = None) -> int:
    """A run as a process of its own, which notes the rows it answers in `log`; its id."""
    child = os.fork()
    if child:
        return child
    os.environ.update(environment or {})
    answer = vlm_infer.answering.Answerer.__call__

    def noted(self, positions, rows):
        with log.open("a") as file:
            file.write("".join(f"{position}\n" for position in positions))
        return answer(self, positions, rows)

    vlm_infer.answering.Answerer.__call__ = noted
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    code = 1
    try:
        cli.app(arguments, standalone_mode=False)
        code = 0
    finally:
        os._exit(code)


def kept(out: Path) -> set[int]:
    """The rows with a text in the journal."""
    found = set()
    for path in Outputs(out).parts.glob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            if record.get("text") is not None:
                found.add(record["row"])
    return found


def killed(arguments: list[str], log: Path, after: float) -> bool:
    """Whether the run was killed, and not done before."""
    child = start(arguments, log)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def two(arguments: list[str], name: str) -> list[int]:
    """The ids of two runs that share the rows, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [start(arguments, Path(f"{name}.{rank}.log"), {**meeting, "RANK": str(rank)}) for rank in range(2)]


def rows_in(log: str) -> list[int]:
    return list(map(int, Path(log).read_text().split()))


def shared(arguments: list[str]) -> dict:
    """What came of two processes that did all, and of two that were killed."""
    statuses = [os.waitpid(child, 0)[1] for child in two([*arguments, "--out", "two.jsonl"], "two")]
    command = [*arguments, "--out", "fewer.jsonl"]
    children = two(command, "fewer")
    deadline = time.monotonic() + 60
    while len(kept(Path("fewer.jsonl"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    before = kept(Path("fewer.jsonl"))
    statuses.append(os.waitpid(start(command, Path("one.log")), 0)[1])
    again = len(before & set(rows_in("one.log")))
    return {"statuses": statuses, "shares": [rows_in("two.0.log"), rows_in("two.1.log")], "again": again}


def main(trials: int, arguments: list[str]) -> None:
    draw = random.Random(0)
    started = time.perf_counter()
    told = {"whole": os.waitpid(start([*arguments, "--out", "whole.jsonl"], Path("whole.log")), 0)[1], "trials": []}
    whole = time.perf_counter() - started
    for trial in range(trials):
        out, kept_at, again = Path(f"{trial}.jsonl"), [], []
        command = [*arguments, "--out", str(out)]
        for attempt in range(3):
            before, log = kept(out), Path(f"{trial}.{attempt}.log")
            if attempt < 2:
                killed(command, log, draw.uniform(0.1, 0.9) * whole)
            else:
                status = os.waitpid(start(command, log), 0)[1]
            answered = set(map(int, log.read_text().split())) if log.exists() else set()
            kept_at.append(len(before))
            again.append(len(answered & before))
        told["trials"].append({"status": status, "kept": kept_at, "again": again})
    told["shared"] = shared(arguments)
    print(json.dumps(told))


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main(int(sys.argv[2]), sys.argv[3:])
