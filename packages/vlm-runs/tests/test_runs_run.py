"""What is read of a run's folder, and what is said of others."""

import json

import pytest

from vlm_runs import Run, RunError, read_run

CONFIG = {"model": "tiny-git", "quantization": "none", "dtype": "auto"}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps({"config": CONFIG, "status": "done"}))
    return tmp_path


def test_what_the_run_used(run):
    record = {"config": CONFIG, "status": "done"}
    assert read_run(run) == Run(run, "tiny-git", "none", "auto", None, 1024, record)
    assert read_run(run).adapter == run / "adapter"
    more = {**CONFIG, "revision": "v1", "max_image_tokens": 20}
    (run / "run.json").write_text(json.dumps({"config": more}))
    assert (read_run(run).revision, read_run(run).max_image_tokens) == ("v1", 20)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": {}}', '{"config": []}', '"text"'])
def test_a_record_of_something_else(run, content):
    (run / "run.json").write_text(content)
    with pytest.raises(RunError, match="run.json is not one that vlm-train wrote"):
        read_run(run)


def test_a_run_that_is_not_done(run):
    (run / "adapter" / "adapter_config.json").unlink()
    (run / "run.json").write_text(json.dumps({"config": CONFIG, "status": "running"}))
    with pytest.raises(RunError, match="has no adapter: its training is running; train again"):
        read_run(run)


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="is no run: it holds no run.json; give a folder that vlm-train wrote"):
        read_run(tmp_path / "nowhere")
