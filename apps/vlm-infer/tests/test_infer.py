"""The pieces of vlm-infer: options, rows, files. Runs on real models are in the workspace's tests/."""

import csv
import json

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from vlm_infer import InferError, cli
from vlm_infer.rows import read_rows
from vlm_infer.run import load_run
from vlm_infer.write import write


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a"):
        Image.new("RGB", (4, 4), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "questions.csv").write_text("image_name,question\nb.png,what?\nbroken.png,why?\na.png,who?\n")
    (tmp_path / "images.csv").write_text("image_name\nb.png\na.png\n")
    return tmp_path


def test_every_option_has_help():
    command = typer.main.get_command(cli.app)
    assert all(parameter.help for parameter in command.params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "a.png"], "is no run"),
        (["--run", "run"], "give one of --image"),
        (["--run", "run", "--image", "a.png", "--images", "."], "give one of --image"),
        (["--run", "run", "--image", "a.png", "--image-dir", "."], "--image-dir goes with --table"),
        (["--run", "run", "--image", "a.png", "--out", "texts.xlsx"], "must end in .csv or .jsonl"),
    ],
)
def test_options_that_do_not_go_together(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")
    if "--run" not in arguments:
        arguments = ["--run", ".", *arguments]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_image_a_folder_and_tables_become_rows(folder):
    rows, rejected = read_rows(folder / "a.png", None, None, None, "what is it?")
    assert (rows["prompt"][0], rows["image"][0]["path"], rejected) == ("what is it?", str(folder / "a.png"), [])
    rows, rejected = read_rows(None, folder, None, None, None)
    assert rows["id"][:] == ["a.png", "b.png"] and set(rows["prompt"]) == {None}
    assert [record.source for record in rejected] == [str(folder / "broken.png")]
    rows, rejected = read_rows(None, None, folder / "questions.csv", None, None)
    assert rows["prompt"][:] == ["what?", "who?"] and "questions.csv:3" in rejected[0].source
    rows, _ = read_rows(None, None, folder / "questions.csv", folder, "how?")
    assert set(rows["prompt"]) == {"how?"}
    rows, _ = read_rows(None, None, folder / "images.csv", None, None)
    assert set(rows["prompt"]) == {None} and len(rows) == 2


def test_nothing_to_read_is_an_error(folder):
    (folder / "none").mkdir()
    with pytest.raises(ValueError, match="no images in it"):
        read_rows(None, folder / "none", None, None, None)


def test_texts_are_written_in_order(folder):
    rows, _ = read_rows(None, None, folder / "images.csv", None, None)
    write(folder / "out" / "texts.csv", rows, ["one, two", "three\nfour"], [])
    with (folder / "out" / "texts.csv").open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert [(record["id"], record["text"]) for record in records] == [
        ("images-2", "one, two"),
        ("images-3", "three\nfour"),
    ]
    write(folder / "texts.jsonl", rows, ["é", "x"], [])
    assert [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()] == ["é", "x"]
    assert not [path for path in folder.rglob("*.partial")]


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}'])
def test_a_run_json_of_something_else_is_told(folder, content):
    (folder / "run.json").write_text(content)
    with pytest.raises(InferError, match="run.json is not one that vlm-train wrote"):
        load_run(folder, "cpu")
