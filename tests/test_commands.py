"""vlm-train and vlm-infer as a user runs them: own files, results, and every kind of bad input."""

import contextlib
import csv
import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import forked
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import vlm_infer.cli
import vlm_train.cli

SCRIPTS = Path(sys.executable).parent
QUICK = ["--model", "tiny-git", "--max-steps", "3", "--batch-size", "8", "--val-rows", "40"]


def process(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command as a process of its own."""
    return forked.run([str(argument) for argument in arguments], cwd)


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command in this process, which saves the imports."""
    app = {"vlm-train": vlm_train.cli.app, "vlm-infer": vlm_infer.cli.app}[arguments[0]]
    with contextlib.chdir(cwd):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments[1:]])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def fails(*arguments: str | Path, cwd: Path) -> str:
    """The one line with which a command refuses; it must leave nothing behind."""
    before = sorted(cwd.rglob("*"))
    result = command(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stdout + result.stderr
    assert sorted(cwd.rglob("*")) == before
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    return errors[0]


@pytest.fixture(scope="module")
def files(user_folder) -> Path:
    """A user's folder: photos, a table of captions and one of questions."""
    return user_folder("user", 30)


@pytest.fixture(scope="module")
def finished(files) -> Path:
    """A run on the user's captions, in which three rows are bad."""
    table = files / "with-bad-rows.csv"
    (files / "photos" / "broken.png").write_bytes(b"<html>not found</html>")
    bad = "broken.png,a broken picture\nmissing.png,a missing one\n../captions.csv,an escape\n"
    table.write_text((files / "captions.csv").read_text() + bad)
    result = process("vlm-train", "--data", table, "--image-dir", files / "photos", *QUICK, "--out", "run", cwd=files)
    assert result.returncode == 0, result.stderr
    assert (
        "3 rows rejected" in result.stdout and "exact match" in result.stdout and "vlm-infer --run run" in result.stdout
    )
    return files / "run"


def test_a_run_is_the_folder_of_the_design(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("run.json", "adapter", "README.md", "metrics.jsonl", "predictions.jsonl", "rejected.jsonl"),
        *("curves.png", "report.html"),
    }
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "done" and record["config"]["max_steps"] == 3 and record["results"]["steps"] == 3
    assert record["data"]["train"]["rows"] + record["data"]["validation"]["rows"] == 30
    assert record["results"]["before"].keys() == record["results"]["after"].keys() == {"exact_match", "bleu"}
    predictions = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == record["data"]["validation"]["rows"]
    mean = sum(one["exact_match"] for one in predictions) / len(predictions)
    assert mean == pytest.approx(record["results"]["after"]["exact_match"])
    steps = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 3, 3]  # evaluated before, trained, evaluated after
    assert steps[1]["loss"] > 0 and steps[2]["exact_match"] == record["results"]["after"]["exact_match"]
    assert Image.open(finished / "curves.png").size[0] > 100
    shown = re.search(r'id="data">(.*?)</script>', (finished / "report.html").read_text(), re.DOTALL)[1]
    assert [row["said"][0]["text"] for row in json.loads(shown)["rows"]] == [one["prediction"] for one in predictions]


def test_rejected_rows_are_kept_with_their_reasons(finished):
    rejected = [json.loads(line) for line in (finished / "rejected.jsonl").read_text().splitlines()]
    reasons = {record["source"].split(":")[-1]: record["reason"] for record in rejected}
    assert reasons.keys() == {"32", "33", "34"}
    assert (
        "not an image" in reasons["32"] and "not found" in reasons["33"] and "leaves the image folder" in reasons["34"]
    )


def test_the_same_seed_gives_the_same_adapter_byte_for_byte(finished, files):
    record = json.loads((finished / "run.json").read_text())["config"]
    arguments = ["--data", record["data"], "--image-dir", record["image_dir"], *QUICK]
    assert command("vlm-train", *arguments, "--out", "again", cwd=files).returncode == 0
    assert command("vlm-train", *arguments, "--seed", "1", "--out", "other", cwd=files).returncode == 0
    one, again, other = (
        (files / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("run", "again", "other")
    )
    assert one == again != other


def test_infer_one_image_a_folder_and_a_table(finished, files):
    one = process("vlm-infer", "--run", "run", "--image", "photos/0.png", cwd=files)
    assert one.returncode == 0 and len(one.stdout.strip().splitlines()) == 1, one.stderr
    asked = command("vlm-infer", "--run", "run", "--image", "photos/0.png", "--question", "is there a star?", cwd=files)
    assert asked.stdout.strip() in ("yes", "no")

    folder = command("vlm-infer", "--run", "run", "--images", "photos", "--out", "texts.csv", cwd=files)
    assert folder.returncode == 0 and "broken.png: " in folder.stderr, folder.stderr
    with (files / "texts.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    assert len(texts) == 30 and all(text["text"] for text in texts)
    first = next(text for text in texts if text["image"].endswith("/0.png"))
    assert first["text"] == one.stdout.strip()

    table = command(
        "vlm-infer", "--run", "run", "--table", "questions.csv", "--image-dir", "photos", "--out", "a.jsonl", cwd=files
    )
    assert table.returncode == 0, table.stderr
    answers = [json.loads(line) for line in (files / "a.jsonl").read_text().splitlines()]
    with (files / "questions.csv").open(newline="") as file:
        assert [answer["prompt"] for answer in answers] == [row["question"] for row in csv.DictReader(file)]

    captioned = command("vlm-infer", "--run", "run", "--table", "captions.csv", "--image-dir", "photos", cwd=files)
    assert captioned.returncode == 0 and captioned.stdout.count(".png") == 30, captioned.stderr


@pytest.mark.parametrize("model", ["tiny-blip2", "tiny-qwen2-vl", "tiny-vit-gpt2"])
def test_the_other_families_train_and_answer(model, files):
    arguments = ["--data", "questions.csv", "--image-dir", "photos", *QUICK, "--model", model, "--accumulate", "2"]
    result = command("vlm-train", *arguments, "--out", model, cwd=files)
    assert result.returncode == 0, result.stderr
    asked = command("vlm-infer", "--run", model, "--image", "photos/0.png", "--question", "is there a star?", cwd=files)
    assert asked.stdout.strip() in ("yes", "no"), asked.stderr


def test_a_folder_of_named_images(files):
    result = command("vlm-train", "--data", "photos", *QUICK, "--out", "named", "--targets", "vision", cwd=files)
    assert result.returncode == 0, result.stderr
    assert "images are encoded every step" in result.stdout
    keys = load_file(files / "named" / "adapter" / "adapter_model.safetensors")
    assert keys and all("image_encoder" in key or "visual_projection" in key for key in keys)


def test_four_bits(files):
    arguments = ["--data", "questions.csv", "--image-dir", "photos", *QUICK, "--quantization", "nf4", "--out", "nf4"]
    result = command("vlm-train", *arguments, cwd=files)
    assert result.returncode == 0, result.stderr
    asked = command("vlm-infer", "--run", "nf4", "--image", "photos/0.png", "--question", "is there a star?", cwd=files)
    assert asked.returncode == 0 and asked.stdout.strip(), asked.stderr


def test_show_example_marks_what_is_trained_on(files):
    result = command("vlm-train", "--data", "questions.csv", "--image-dir", "photos", "--show-example", cwd=files)
    assert result.returncode == 0, result.stderr
    assert "trained on (green): " in result.stdout and "<|im_end|>" in result.stdout


BAD_DATA = {
    "columns": (["--data", "columns.csv"], "columns.csv: columns found: image_name, text; needed: caption"),
    "empty": (["--data", "empty.csv"], "empty.csv: the file is empty"),
    "header only": (["--data", "header.csv"], "header.csv: there are no rows"),
    "no file": (["--data", "nowhere.csv"], "nowhere.csv: no such file or folder"),
    "no folder": (["--data", "captions.csv", "--image-dir", "nowhere"], "nowhere: no such image folder"),
    "too many bad": (["--data", "captions.csv", "--image-dir", "none"], "image not found"),
    "all broken": (["--data", "broken.csv"], "is HTML text, not an image"),
    "escape": (["--data", "escape.csv"], "leaves the image folder"),
    "too long": (["--data", "long.csv"], "the model takes 512; shorten the prompt or the answer"),
    "format": (["--data", "captions.csv", "--format", "coco"], "unknown format 'coco'"),
    "model": (["--model", "tiny-gti"], "did you mean tiny-git"),
    "hub": (["--model", "nobody/nothing"], "cannot load 'nobody/nothing'"),
    "method": (["--method", "lroa"], "--method 'lroa' is unknown; known: lora"),
    "target": (["--targets", "q_porj"], "q_porj"),
    "run": (["--out", "run"], "--out run already holds a run; choose another folder"),
    "device": (["--device", "toaster"], "device 'toaster' is not available"),
    "rank": (["--rank", "0"], "--rank must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_input_of_train_is_one_line(case, finished, files):
    (files / "none").mkdir(exist_ok=True)
    (files / "columns.csv").write_text("image_name,text\n0.png,a\n")
    (files / "empty.csv").write_text("")
    (files / "header.csv").write_text("image_name,caption\n")
    (files / "broken.csv").write_text("image_name,caption\nphotos/broken.png,a\n")
    long = "very " * 200
    (files / "long.csv").write_text(f"image_name,caption\nphotos/0.png,{long}\nphotos/1.png,{long}\n")
    (files / "escape.csv").write_text("image_name,caption\n../../etc/passwd,a\n")
    arguments, message = BAD_DATA[case]
    if "--data" not in arguments:
        arguments = ["--data", "captions.csv", "--image-dir", "photos", *arguments]
    assert message in fails("vlm-train", *arguments, cwd=files)


def test_bad_input_of_infer_is_one_line(finished, files):
    (files / "none").mkdir(exist_ok=True)
    image = ["--image", "photos/0.png"]
    assert "--run photos is no run" in fails("vlm-infer", "--run", "photos", *image, cwd=files)
    assert "give one of --image" in fails("vlm-infer", "--run", "run", cwd=files)
    assert "not an image" in fails("vlm-infer", "--run", "run", "--image", "photos/broken.png", cwd=files)
    assert "nowhere.png" in fails("vlm-infer", "--run", "run", "--image", "nowhere.png", cwd=files)
    assert "must end in .csv or .jsonl" in fails("vlm-infer", "--run", "run", *image, "--out", "a.txt", cwd=files)
    assert "none: there are no images in it" in fails("vlm-infer", "--run", "run", "--images", "none", cwd=files)


def test_an_interrupted_run_keeps_its_adapter(files):
    line = [SCRIPTS / "vlm-train", "--data", "scenes", "--model", "tiny-git", "--val-rows", "8", "--out", "interrupted"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job inherits that it is ignored
    training = subprocess.Popen(line, cwd=files, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    metrics = files / "interrupted" / "metrics.jsonl"
    while training.poll() is None and not (metrics.exists() and '"loss"' in metrics.read_text()):
        time.sleep(0.1)
    training.send_signal(signal.SIGINT)
    said, _ = training.communicate(timeout=120)
    assert training.returncode == 130 and "interrupted after step" in said
    assert json.loads((files / "interrupted" / "run.json").read_text())["status"].startswith("interrupted after step")
    assert command("vlm-infer", "--run", "interrupted", "--image", "photos/0.png", cwd=files).stdout.strip()


def test_a_killed_run_says_so(finished, files):
    """What `kill -9` leaves behind: run.json without an adapter."""
    killed = files / "killed"
    killed.mkdir()
    record = json.loads((finished / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert "--run killed has no adapter" in fails("vlm-infer", "--run", "killed", "--image", "photos/0.png", cwd=files)
    assert "--out killed already holds a run" in fails("vlm-train", "--out", "killed", cwd=files)
