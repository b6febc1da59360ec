"""A job that is killed, or meant otherwise, or finished: what the same command does then.

VLM_INFER_KILLS is the number of jobs that are killed (6 without it), each of them twice.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vlm_infer import journal
from vlm_infer.answering import Answerer
from vlm_infer.errors import InferError
from vlm_infer.journal import Done, Journal

MODEL = ["--model", "tiny-git", "--device", "cpu", "--max-new-tokens", "8"]
TABLE = ["--data", "pictures/questions.csv", "--image-dir", "pictures/photos"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


TRIALS = int(os.environ.get("VLM_INFER_KILLS", 6))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, dict]:
    """A folder with the results of a job that was run in many ways, and what `kill_driver.py` tells of them."""
    folder = tmp_path_factory.mktemp("killed")
    rows = ["image_name,question"]
    for number in range(60):
        Image.new("RGB", (32, 32), (4 * number, 255 - 4 * number, 90)).save(folder / f"{number}.png")
        rows += [f"{number}.png,is it {what}?" for what in ("red", "green")]
    (folder / "7.png").write_bytes(b"no picture")
    (folder / "t.csv").write_text("\n".join(rows))
    driver = [sys.executable, str(Path(__file__).with_name("kill_driver.py")), str(folder), str(TRIALS)]
    command = [*driver, *MODEL, "--data", "t.csv", "--batch-size", "2"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["whole"] == 0
    whole = lines(folder / "whole.jsonl")
    assert [row["prompt"] for row in whole] == [row.split(",")[1] for row in rows[1:] if row.split(",")[0] != "7.png"]
    return folder, told


def same(folder: Path, name: str) -> None:
    """Whether the output is that of the run that was left alone, but for the time it took."""
    for one, other in zip(lines(folder / f"{name}.jsonl"), lines(folder / "whole.jsonl"), strict=True):
        assert one.pop("logprob") == pytest.approx(other.pop("logprob"), abs=1e-4)
        assert one.pop("seconds") > 0 < other.pop("seconds")
        assert one == other
    rejected = lines(folder / f"{name}.jsonl.rejected.jsonl")
    assert rejected == lines(folder / "whole.jsonl.rejected.jsonl") and len(rejected) == 2
    assert not (folder / f"{name}.jsonl.parts").exists()


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_and_nothing_done_twice(killed):
    folder, told = killed
    assert len(told["trials"]) == TRIALS
    for number, trial in enumerate(told["trials"]):
        assert trial["status"] == 0
        assert trial["again"] == [0, 0, 0]  # what was kept at a kill is not answered again
        same(folder, str(number))
    assert any(0 < kept < 118 for trial in told["trials"] for kept in trial["kept"])  # kills hit the middle


@pytest.mark.slow
def test_two_processes_share_the_rows(killed):
    folder, told = killed
    assert told["shared"]["statuses"] == [0, 0, 0]
    first, second = (set(share) for share in told["shared"]["shares"])
    assert not first & second and first | second == set(range(120)) and min(len(first), len(second)) > 40
    same(folder, "two")


@pytest.mark.slow
def test_what_two_began_one_finishes(killed):
    folder, told = killed
    assert told["shared"]["again"] == 0
    same(folder, "fewer")


@pytest.fixture
def interrupted(command, tmp_path, monkeypatch):
    """A job that was stopped after some of its rows; `a.jsonl.parts` holds them."""
    answer = Answerer.__call__

    def stopping(self, positions, rows):
        if stopping.left == 0:
            raise KeyboardInterrupt
        stopping.left -= 1
        return answer(self, positions, rows)

    stopping.left = 3
    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "__call__", stopping)
        result = command(*MODEL, *TABLE, "--batch-size", "2", "--out", "a.jsonl")
    assert result.exit_code == 130 and "the same command goes on" in result.stderr
    return tmp_path / "a.jsonl.parts" / "00000.jsonl"


def test_stopped_by_hand_it_keeps_what_is_done_and_goes_on(interrupted, command, tmp_path, monkeypatch):
    assert len(lines(interrupted)) == 1 + 6
    interrupted.write_bytes(interrupted.read_bytes()[:-5])  # as if killed in the middle of a line
    asked = []
    answer = Answerer.__call__
    monkeypatch.setattr(Answerer, "__call__", lambda self, at, rows: asked.extend(at) or answer(self, at, rows))
    result = command(*MODEL, *TABLE, "--batch-size", "5", "--out", "a.jsonl")
    assert result.exit_code == 0 and "12 texts" in result.stdout and len(asked) == 12 - 5
    assert command(*MODEL, *TABLE, "--out", "whole.jsonl").exit_code == 0
    assert [row["text"] for row in lines(tmp_path / "a.jsonl")] == [r["text"] for r in lines(tmp_path / "whole.jsonl")]


def test_another_question_model_or_option_is_refused_until_it_is_to_begin_anew(interrupted, command, tmp_path):
    base = [*MODEL, *TABLE, "--out", "a.jsonl"]
    for more, what in (
        (["--question", "why?"], "question was None and is 'why?'"),
        (["--model", "tiny-vit-gpt2"], "model was 'tiny-git' and is 'tiny-vit-gpt2'"),
        (["--max-new-tokens", "9"], "max_new_tokens was 8 and is 9"),
    ):
        result = command(*base, *more)
        assert result.exit_code == 2 and what in result.stderr and "--overwrite" in result.stderr
    kept = interrupted.read_bytes()
    result = command(*base, "--model", "tiny-no", "--overwrite")
    assert result.exit_code == 2 and interrupted.read_bytes() == kept  # nothing is lost to a model that does not load
    result = command(*base, "--question", "why?", "--overwrite")
    assert result.exit_code == 0 and {row["prompt"] for row in lines(tmp_path / "a.jsonl")} == {"why?"}


def test_other_data_is_refused(interrupted, command, tmp_path):
    table = (tmp_path / "pictures" / "questions.csv").read_text()
    other = tmp_path / "other.csv"
    other.write_text(table.replace("the shape", "a shape"))
    result = command(*MODEL, "--data", "other.csv", "--image-dir", "pictures/photos", "--out", "a.jsonl")
    assert result.exit_code == 2 and "data was '" in result.stderr


def test_done_is_done(command, tmp_path, monkeypatch):
    base = [*MODEL, *TABLE, "--out", "a.csv"]
    assert command(*base).exit_code == 0
    content = (tmp_path / "a.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.delattr(Answerer, "__init__")  # the model is not loaded
        again = command(*base)
    assert again.exit_code == 0 and "this was done before" in again.stdout and "12 texts in a.csv" in again.stdout
    refused = command(*base, "--num-beams", "2")
    assert refused.exit_code == 2 and "a.csv was made otherwise (num_beams was 1 and is 2)" in refused.stderr
    assert (tmp_path / "a.csv").read_bytes() == content
    (tmp_path / "theirs.csv").write_text("something else")
    refused = command(*MODEL, *TABLE, "--out", "theirs.csv")
    assert refused.exit_code == 2 and "theirs.csv exists" in refused.stderr
    assert (tmp_path / "theirs.csv").read_text() == "something else"


def test_two_at_once_are_kept_apart(tmp_path):
    with Journal(tmp_path, {}):
        with pytest.raises(InferError, match="another vlm-infer is at work"), Journal(tmp_path, {}):
            pass
        with Journal(tmp_path, {}, process=1):
            pass
    with Journal(tmp_path, {}):
        pass


def record(row: int, text: str | None, tries: int = 1) -> dict:
    return {"row": row, "text": text, "tries": tries, "references": []}


def test_the_journal_counts_the_last_line_of_a_row_and_a_text_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    with Journal(tmp_path, {}) as first, Journal(tmp_path, {}, process=1) as second:
        first.add([record(4, "four"), record(0, None)])
        second.add([record(1, None), record(2, "two")])
        first.add([record(0, "nought", 2)])
        second.add([record(1, None, 2), record(4, None, 2)])
    done = Done(tmp_path, 6)
    assert [(r["row"], r["text"]) for r in done.records()] == [(0, "nought"), (1, None), (2, "two"), (4, "four")]
    assert (done.failed, done.retried) == ({1}, {1})


def test_parts_are_written_as_time_passes(tmp_path, monkeypatch):
    """Nothing waits longer than a part's time, and a disk is not asked to sync for every row."""
    clock = [0.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    with Journal(tmp_path, {}) as made:
        made.add([record(0, "a")])
        assert len(lines(tmp_path / "00000.jsonl")) == 1
        clock[0] = journal.SECONDS
        made.add([record(1, "b")])
        assert len(lines(tmp_path / "00000.jsonl")) == 3
