"""Training from shards: the rows of each step, bad rows, and a run that goes on."""

import json
import os
import signal
import tarfile

import pytest

import vlm_models
from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig
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
    whole = run(TrainConfig(**options, out=str(tmp_path / "whole")))
    at_once, stops = list(seen), True
    assert len(at_once) == 16  # two epochs of 32 rows
    rejected = [json.loads(line) for line in (whole / "rejected.jsonl").read_text().splitlines()]
    assert [one["source"].rsplit("/", 1)[-1] for one in rejected] == ["train-1.tar:bad"]
    assert json.loads((whole / "run.json").read_text())["data"]["train"]["rows"] == 32

    seen.clear()
    config = TrainConfig(**options, out=str(tmp_path / "stopped"))
    with pytest.raises(SystemExit):
        run(config)
    assert len(seen) == 5
    stops = False
    run(config, resume=True)
    assert seen == at_once and adapter(tmp_path / "stopped") == adapter(whole)


def test_what_a_stream_needs_is_said():
    with pytest.raises(ConfigError, match=r"^--stream holds nothing out; give other pictures by --val-data"):
        TrainConfig(data="shards", stream=True)
    with pytest.raises(ConfigError, match=r"^--stream is for shards of your own"):
        TrainConfig(stream=True, val_data="val")
