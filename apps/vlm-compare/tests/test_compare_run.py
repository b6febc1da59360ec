"""A comparison as a whole: runs are trained once, go on, may fail, and end in a table."""

import csv
import json
import subprocess

import pytest

import vlm_data
from vlm_compare import training
from vlm_compare.cells import cells_of
from vlm_compare.run import run
from vlm_compare.training import train_cell
from vlm_train.errors import ConfigError, TrainError
from vlm_train.run import run as train_in_process

COMMON = {"model": "tiny-git", "max_steps": 2, "batch_size": 4, "val_rows": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> str:
    """A table of captions, of pictures beside it."""
    folder = tmp_path_factory.mktemp("captions")
    rows = [row for row in vlm_data.open("scenes", split="train", size=40) if row["prompt"] is None]
    lines = ["image_name,caption"]
    for row in rows:
        vlm_data.decode(row["image"]).save(folder / f"{row['id']}.png")
        lines.append(f'{row["id"]}.png,"{row["references"][0]}"')
    (folder / "captions.csv").write_text("\n".join(lines))
    return str(folder / "captions.csv")


class Trainer:
    """Trains in this process and remembers what; fails or is interrupted where it is told to."""

    def __init__(self, fails: str = "", interrupted: str = ""):
        self.fails, self.interrupted, self.trained = fails, interrupted, []

    def __call__(self, cell, config, folder):
        if cell.name == self.interrupted:
            raise KeyboardInterrupt
        if cell.name == self.fails:
            raise TrainError("the loss is not finite")
        train_in_process(config)
        self.trained.append(cell.name)


def test_a_comparison_goes_on_where_it_was_stopped(captions, tmp_path, capsys):
    common = {**COMMON, "data": captions}
    cells = cells_of("lora,bitfit", [], 1, common)
    first = Trainer(interrupted="bitfit-seed0")
    with pytest.raises(KeyboardInterrupt):
        run(cells, "lora", tmp_path, train=first)
    second = Trainer(fails="bitfit-seed0")
    assert run(cells, "lora", tmp_path, train=second) == [("bitfit-seed0", "the loss is not finite")]
    assert "the loss is not finite" in (tmp_path / "comparison.html").read_text()
    third = Trainer()
    assert run(cells, "lora", tmp_path, captions, 6, train=third) == []
    assert (first.trained, second.trained, third.trained) == (["lora-seed0"], [], ["bitfit-seed0"])
    assert "1 of 2 runs are done already" in capsys.readouterr().out

    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "comparison.csv").open())}
    for method, row in rows.items():
        folder = tmp_path / "runs" / f"{method}-seed0"
        results = json.loads((folder / "run.json").read_text())["results"]
        scored = [json.loads(line)["bleu"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
        assert row["metric"] == "bleu" and float(row["score"]) == pytest.approx(sum(scored) / len(scored))
        assert float(row["training_seconds"]) == results["seconds"]["training"]
        assert -1 <= float(row["on_other_data"]) <= 1
    base = json.loads((tmp_path / "forgetting" / "base.json").read_text())
    assert len(base["ids"]) == 6

    # again, nothing is left to train; and other conditions are another comparison
    fourth = Trainer()
    run(cells, "lora", tmp_path, train=fourth)
    assert fourth.trained == []
    with pytest.raises(ConfigError, match=r"lora-seed0: has max_steps 2, and 3 is asked for; choose another --out"):
        run(cells_of("lora,bitfit", [], 1, {**common, "max_steps": 3}), "lora", tmp_path, train=Trainer())


class Called:
    """Stands for `subprocess.run`."""

    def __init__(self, returncode=0, stderr=""):
        self.returncode, self.stderr, self.commands = returncode, stderr, []

    def __call__(self, command, **options):
        self.commands.append(command[3:])
        return subprocess.CompletedProcess(command, self.returncode, None, self.stderr)


def test_a_run_that_was_begun_is_resumed(tmp_path, monkeypatch):
    ((cell, config),) = cells_of("lora", ["learning_rate=1e-3"], 1, COMMON).items()
    called = Called()
    monkeypatch.setattr(training.subprocess, "run", called)
    folder = tmp_path / "runs" / cell.name
    train_cell(cell, config, folder)
    assert called.commands == [["--config", f"{folder}.yaml"]]
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "running", "config": config.as_dict()}))
    train_cell(cell, config, folder)
    assert called.commands[1:] == [["--resume", str(folder)]]
    (folder / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run.json: is damaged; remove"):
        train_cell(cell, config, folder)


@pytest.mark.parametrize(
    ("code", "raised", "message"),
    [(2, TrainError, "^--rank must be at least 1$"), (130, KeyboardInterrupt, None), (-15, KeyboardInterrupt, None)],
)
def test_what_ends_a_run_is_told(code, raised, message, tmp_path, monkeypatch):
    ((cell, config),) = cells_of("lora", [], 1, COMMON).items()
    monkeypatch.setattr(training.subprocess, "run", Called(code, "a warning\nerror: --rank must be at least 1\n"))
    with pytest.raises(raised, match=message):
        train_cell(cell, config, tmp_path / cell.name)


def test_out_that_cannot_be_written_is_told_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    (cell, config) = next(iter(cells_of("lora", [], 1, COMMON).items()))
    with pytest.raises(ConfigError, match="cannot be written .*; choose another --out"):
        train_cell(cell, config, tmp_path / "file" / "runs" / cell.name)
