"""Training from shards: the rows of each step, bad rows, and a run that goes on."""

import json
import multiprocessing
import os
import re
import signal
import tarfile

import pytest

import vlm_data
import vlm_models
from vlm_train.dry_run import dry_run
from vlm_train.errors import ConfigError, TrainError
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.streaming import StreamBatches
from vlm_train.run import run


@pytest.fixture(scope="module")
def shards(captions, tmp_path_factory):
    """Two tar files of 15 and 16 pictures with their captions, and one of which the image is cut off."""
    folder = tmp_path_factory.mktemp("shards")
    lines = (captions / "captions.csv").read_text().splitlines()[1:]
    for number, some in enumerate((lines[:15], lines[15:31])):
        with tarfile.open(folder / f"train-{number}.tar", "w") as tar:
            for line in some:
                name, caption = line.split(",", 1)
                text = folder / "text"
                text.write_text(caption)
                tar.add(captions / name, name)
                tar.add(text, name.replace(".png", ".txt"))
            if number == 1:
                text.write_bytes((captions / name).read_bytes()[:50])
                tar.add(text, "bad.png")
                tar.add(captions / "captions.csv", "bad.txt")
    val = folder / "val.csv"
    val.write_text("image_name,caption\n" + "\n".join(lines[31:]) + "\n")
    text.unlink()
    return folder


@pytest.fixture
def options(shards, captions):
    data = {"data": str(shards / "train-*.tar"), "stream": True, "val_data": str(shards / "val.csv")}
    return {"model": "tiny-git", **data, "image_dir": str(captions), "batch_size": 4, "epochs": 2, "device": "cpu"}


def adapter(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_stopped_run_goes_on_with_the_rows_that_are_next(options, tmp_path, monkeypatch):
    seen: list[str] = []
    plain = vlm_models.VLM.forward

    def forward(vlm, batch):
        if vlm.training:
            seen.append(str(batch["input_ids"].tolist()))
            if len(seen) == 5 and stops:
                os.kill(os.getpid(), signal.SIGINT)
        return plain(vlm, batch)

    monkeypatch.setattr(vlm_models.VLM, "forward", forward)
    stops = False
    whole = run(TrainConfig(**options, workers=0, out=str(tmp_path / "whole")))
    at_once, stops = list(seen), True
    assert len(at_once) == 16  # two epochs of 32 rows
    rejected = [json.loads(line) for line in (whole / "rejected.jsonl").read_text().splitlines()]
    assert [one["source"].rsplit("/", 1)[-1] for one in rejected] == ["train-1.tar:bad"]
    assert json.loads((whole / "run.json").read_text())["data"]["train"]["rows"] == 32

    seen.clear()
    config = TrainConfig(**options, workers=2, out=str(tmp_path / "stopped"))
    with pytest.raises(SystemExit):
        run(config)
    assert len(seen) == 5
    stops = False
    run(config, resume=True)
    assert seen == at_once and adapter(tmp_path / "stopped") == adapter(whole)


def test_a_bad_row_counts_once_however_often_it_comes_and_is_remembered(options):
    config = TrainConfig(**options, workers=0)

    def begun():
        found = vlm_data.stream(config.data, image_dir=config.image_dir)
        return StreamBatches(None, _collate_decoded, found, config, Processes())

    batches = begun()
    for step in range(8 * 12):  # epochs
        batches.rows(step)
    (bad,) = batches.rejected
    assert bad.source.endswith("train-1.tar:bad")
    again = begun()
    again.restore(json.loads(json.dumps(batches.state(96))))
    assert again.rejected == [bad]
    assert again.rows(96)[0][0]["id"] == batches.rows(96)[0][0]["id"]


def _collate_decoded(rows, epoch):
    return [vlm_data.decode(row["image"]) for row in rows]


def test_a_worker_that_is_killed_is_told(options, tmp_path, monkeypatch):
    plain = vlm_models.VLM.forward

    def forward(vlm, batch):
        for worker in multiprocessing.active_children() if vlm.training else ():
            worker.kill()
        return plain(vlm, batch)

    monkeypatch.setattr(vlm_models.VLM, "forward", forward)
    with pytest.raises(TrainError, match=r"a process that reads the stream has ended.* --resume with fewer --workers"):
        run(TrainConfig(**options, workers=1, out=str(tmp_path / "run")))


def test_a_dry_run_of_a_stream(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry_run(TrainConfig(**options, workers=1))
    said = capsys.readouterr().out
    assert (
        re.search(r"^32 rows to stream, \d+ validation rows", said, re.MULTILINE)
        and "16 steps of 4 x 1 rows: 2.00 epochs" in said
    )
    assert len(re.search(r"losses of two steps: (.*)", said)[1].split(", ")) == 2 and "encoded once" not in said
    assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()


def test_what_a_stream_needs_is_said():
    with pytest.raises(ConfigError, match=r"^--stream holds nothing out; give other pictures by --val-data"):
        TrainConfig(data="shards", stream=True)
    with pytest.raises(ConfigError, match=r"^--stream is for shards of your own"):
        TrainConfig(stream=True, val_data="val")


def test_why_no_row_of_a_stream_can_be_read_is_said(options, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"image": "nowhere.png", "caption": "a circle"}\n')
    wrong = {**options, "data": str(tmp_path / "train.jsonl"), "out": str(tmp_path / "run")}
    with pytest.raises(
        vlm_data.DataError, match=r"none of its first rows can be read; .*:1: image not found: .*nowhere"
    ):
        run(TrainConfig(**wrong))
