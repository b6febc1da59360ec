"""Where a run goes, and how its files are written."""

import pytest

from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig
from vlm_train.rundir import RunDir, choose_folder, make_folder


def test_a_run_is_named_after_what_it_is_and_never_overwrites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(model="Salesforce/blip2-opt-2.7b", data="my/photos.csv")
    first = choose_folder(config)
    assert str(first) == "runs/blip2-opt-2.7b-lora-photos"
    first.mkdir(parents=True)
    assert str(choose_folder(config)) == "runs/blip2-opt-2.7b-lora-photos-2"


def test_a_run_killed_before_its_first_file_was_whole_leaves_out_as_empty(tmp_path, monkeypatch):
    config = TrainConfig(out=str(tmp_path / "run"))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        make_folder(choose_folder(config)).write_json("run.json", {"status": "running"})
    assert any((tmp_path / "run").iterdir()) and choose_folder(config) == tmp_path / "run"


def test_out_may_be_empty_but_not_in_use(tmp_path):
    config = TrainConfig(out=str(tmp_path / "run"))
    assert choose_folder(config) == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert choose_folder(config) == tmp_path / "run"
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        choose_folder(config)
    (tmp_path / "run" / "run.json").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        choose_folder(config)


def test_out_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"--out .*run: .*file is a file; choose another folder"):
        choose_folder(TrainConfig(out=str(tmp_path / "file" / "run")))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # tests may run as one who may write anywhere
    with pytest.raises(ConfigError, match=r"--out .*run: .* cannot be written to; choose another folder"):
        choose_folder(TrainConfig(out=str(tmp_path / "run")))


def test_a_folder_that_cannot_be_made_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--out .*run: Not a directory; choose another folder"):
        make_folder(tmp_path / "file" / "run")


def test_files_are_whole_or_absent(tmp_path):
    run = RunDir(tmp_path)
    run.write_lines("a.jsonl", [{"text": "é"}, {"text": "b"}])
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"text": "é"}\n{"text": "b"}\n'
    with pytest.raises(TypeError):
        run.write_json("run.json", {"not": {1, 2}})
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
