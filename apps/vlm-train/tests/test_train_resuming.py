"""Runs that stop: by a signal, a full disk, a loss that is not finite; and what `--resume` makes of them."""

import errno
import json
import math
import os
import signal

import pytest
import torch
from typer.testing import CliRunner

import vlm_models
from vlm_train import cli
from vlm_train.engine.loop import Step
from vlm_train.engine.state import Answers, State
from vlm_train.errors import ConfigError, TrainError
from vlm_train.options.config import TrainConfig
from vlm_train.resuming import options_of
from vlm_train.run import run


@pytest.fixture(scope="module")
def options(captions, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    data = {"data": str(captions / "captions.csv"), "val_rows": 4, "cache_dir": str(cache)}
    return {"model": "tiny-git", **data, "max_steps": 6, "batch_size": 4, "dropout": 0.1, "device": "cpu"}


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    return run(TrainConfig(**options, out=str(tmp_path_factory.mktemp("runs") / "undisturbed")))


@pytest.fixture
def in_step(monkeypatch):
    """Have something done in a forward pass of training, by its number."""

    def at(number: int, act) -> None:
        plain, calls = vlm_models.VLM.forward, []

        def forward(vlm, batch):
            if vlm.training:
                calls.append(number)
            loss, tokens = plain(vlm, batch)
            return (act(loss) if vlm.training and len(calls) >= number else loss), tokens

        monkeypatch.setattr(vlm_models.VLM, "forward", forward)

    return at


def adapter(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("validation_loss")) for line in found]


def go_on(folder, *more):
    return CliRunner().invoke(cli.app, ["--resume", str(folder), *more])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_the_run_goes_on_from_there(
    number, code, options, undisturbed, in_step, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    with monkeypatch.context():
        in_step(3, lambda loss: (os.kill(os.getpid(), number) if loss.requires_grad else None, loss)[1])
        with pytest.raises(SystemExit) as stopped:
            run(TrainConfig(**options, out=str(folder)))
        monkeypatch.undo()
    assert stopped.value.code == code
    said = capsys.readouterr().out.replace("\n", " ")
    assert "interrupted after step 3 of 6" in said and f"vlm-train --resume {folder}" in said
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted after step 3 of 6"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000003"]
    assert (folder / "adapter" / "adapter_config.json").exists()

    result = go_on(folder)
    assert result.exit_code == 0 and "going on after step 3" in result.output, result.output
    assert adapter(folder) == adapter(undisturbed) and lines(folder) == lines(undisturbed)
    assert not (folder / "checkpoints").exists()
    (folder / "checkpoints").mkdir()  # as when it was killed before they were removed
    assert "is done" in go_on(folder).output and not (folder / "checkpoints").exists()


def test_the_time_in_all_is_that_of_every_part_of_a_run(options, in_step, tmp_path, monkeypatch):
    in_step(3, lambda loss: os.kill(os.getpid(), signal.SIGINT) or loss)
    with pytest.raises(SystemExit):
        run(TrainConfig(**options, out=str(tmp_path / "run")))
    monkeypatch.undo()
    of_tree = State.of_tree
    monkeypatch.setattr(State, "of_tree", lambda tree: of_tree({**tree, "seconds": 1000.0}))
    assert go_on(tmp_path / "run").exit_code == 0
    seconds = json.loads((tmp_path / "run" / "run.json").read_text())["results"]["seconds"]
    assert 1000 < seconds["training"] < seconds["all"] < 1100


def test_what_a_run_began_with_cannot_be_changed(undisturbed, tmp_path):
    assert options_of(undisturbed, {"device": "cpu", "batch_size": 2, "accumulate": 2})["accumulate"] == 2
    for given, told in (
        ({"rank": 4}, r"--rank 4: the run in .* was begun with 16; leave it out"),
        ({"batch_size": 8}, r"--batch-size times --accumulate is 8, and was 4; keep it"),
    ):
        with pytest.raises(ConfigError, match=told):
            options_of(undisturbed, given)
    with pytest.raises(ConfigError, match=r"there is no run in it, run.json is missing"):
        options_of(tmp_path, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run.json is damaged"):
        options_of(tmp_path, {})


def test_other_rows_are_told(options, captions, in_step, tmp_path, monkeypatch):
    table = tmp_path / "captions.csv"
    table.write_text((captions / "captions.csv").read_text())
    changed = {**options, "data": str(table), "image_dir": str(captions), "out": str(tmp_path / "run")}

    def refuse(loss):
        raise vlm_models.ModelError("no more")

    in_step(2, refuse)
    with pytest.raises(vlm_models.ModelError, match="no more"):
        run(TrainConfig(**changed))
    monkeypatch.undo()
    table.write_text("\n".join(table.read_text().splitlines()[:-2]))
    result = go_on(tmp_path / "run")
    assert result.exit_code == 2 and "its train is no longer what it was" in result.output.replace("\n", " ")


def test_a_run_is_replaced_only_where_that_is_asked(options, undisturbed, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "old.txt").touch()
    with pytest.raises(ConfigError, match="go on with it by --resume, or replace it by --overwrite"):
        run(TrainConfig(**options, out=str(folder)))
    run(TrainConfig(**options, out=str(folder), overwrite=True))
    assert not (folder / "old.txt").exists() and adapter(folder) == adapter(undisturbed)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mine.jpg").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):  # no run: nothing that may be removed
        run(TrainConfig(**options, out=str(photos), overwrite=True))


def test_a_full_disk_ends_the_run_with_its_last_checkpoint(options, undisturbed, tmp_path, monkeypatch):
    folder, plain, calls = tmp_path / "run", os.rename, []

    def full_later(source, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(source, target)

    monkeypatch.setattr(os, "rename", full_later)
    with pytest.raises(TrainError, match=r"step-00000004: no space left on the disk"):
        run(TrainConfig(**options, checkpoint_every=2, out=str(folder)))
    monkeypatch.undo()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    assert "going on after step 2" in go_on(folder).output
    assert adapter(folder) == adapter(undisturbed)


def test_a_step_without_a_finite_loss_is_skipped_and_counted(options, in_step, tmp_path, monkeypatch):
    calls = []

    def sometimes(loss):
        calls.append(loss)
        return loss * math.inf if len(calls) in (1, 2, 4) else loss

    in_step(1, sometimes)
    folder = run(TrainConfig(**options, out=str(tmp_path / "run")))
    results = json.loads((folder / "run.json").read_text())["results"]
    assert results["skipped_steps"] == 3 and results["steps"] == 6
    assert math.isfinite(results["validation_loss"]["after"])


def test_three_in_a_row_end_the_run_and_their_rows_are_named(options, in_step, tmp_path):
    in_step(2, lambda loss: loss * math.nan)
    with pytest.raises(TrainError, match=r"not finite in 3 steps in a row, the last being step 4 .*captions.csv:\d+"):
        run(TrainConfig(**options, out=str(tmp_path / "run")))


def test_a_state_comes_back_from_its_tree():
    state = State(seconds=2.5, before=Answers(0, ["a"], 1.0), evaluated=2, stale=1)
    for number, skipped in enumerate((1, 1, 0), start=1):
        state.add(Step(number, 0.5, 1e-3, 1.0, 4, 9, 0.1, 0.01, 0.05, skipped))
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 2, 0)
    assert [math.isnan(loss) for loss in state.losses] == [True, True, False] and state.rates[-1] == 1e-3
    state.add(Step(4, math.inf, 1e-3, 1.0, 4, 9, 0.1, 0.01, 0.05, 1))
    again = State.of_tree(state.as_tree())
    assert again.losses.tobytes() == state.losses.tobytes()
    again.losses = state.losses  # a NaN equals nothing
    assert again == state and isinstance(again.recent[0].rows, int) and again.skipped_in_a_row == 1
    assert State.of_tree(State().as_tree()) == State()


def test_what_a_checkpoint_keeps_of_a_step_is_two_numbers():
    state, sizes = State(), []
    for number in range(2101):
        state.add(Step(number, 0.5, 1e-3, 1.0, 4, 9, 0.1, 0.01, 0.05, 0))
        if number in (1100, 2100):
            tree = state.as_tree()
            tensors = {name: value for name, value in tree.items() if torch.is_tensor(value)}
            others = json.dumps([value for name, value in tree.items() if name not in tensors])
            sizes.append((sum(tensor.nbytes for tensor in tensors.values()), len(others)))
    assert sizes[1][0] - sizes[0][0] == 1000 * 16 and sizes[1][1] == sizes[0][1] < 2000
