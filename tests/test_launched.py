"""vlm-infer as `accelerate launch` starts it: what one process began, two of them finish."""

import contextlib
import json
import socket
from pathlib import Path

import forked
import pytest
from typer.testing import CliRunner

from vlm_infer.answering import Answerer
from vlm_infer.cli import app

JOB = ["--model", "tiny-git", "--device", "cpu", "--data", "questions.csv", "--image-dir", "photos"]
JOB += ["--max-new-tokens", "4", "--batch-size", "2"]
BEGUN = 6


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(user_folder, monkeypatch) -> Path:
    """A job that was stopped after some of its rows, and one that was not, which made `whole.jsonl`."""
    folder = user_folder("launched", 8)
    answer, batches = Answerer.__call__, []

    def stopping(self, positions, rows):
        if len(batches) == BEGUN / 2:
            raise KeyboardInterrupt
        batches.append(positions)
        return answer(self, positions, rows)

    with contextlib.chdir(folder):
        with monkeypatch.context() as patch:
            patch.setattr(Answerer, "__call__", stopping)
            assert CliRunner().invoke(app, [*JOB, "--out", "texts.jsonl"]).exit_code == 130
        assert CliRunner().invoke(app, [*JOB, "--out", "whole.jsonl"]).exit_code == 0
    return folder


def test_what_one_process_began_two_finish(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    begun = {row["row"]: row["seconds"] for row in lines(folder / "texts.jsonl.parts" / "00000.jsonl")[1:]}
    assert len(begun) == BEGUN
    launch = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port]
    done = forked.run([*launch, "-m", "vlm_infer.cli", *JOB, "--out", "texts.jsonl"], folder)
    assert done.returncode == 0, done.stderr[-2000:]
    together, whole = lines(folder / "texts.jsonl"), lines(folder / "whole.jsonl")
    assert done.stdout.count(f"{len(whole)} texts in texts.jsonl") == 1 and len(whole) > 3 * BEGUN
    assert [(row["id"], row["text"]) for row in together] == [(row["id"], row["text"]) for row in whole]
    # The time that a row took is kept with its text: those of before were not answered a second time.
    assert {row: together[row]["seconds"] for row in begun} == pytest.approx(begun, abs=1e-3)
    assert not (folder / "texts.jsonl.parts").exists()
