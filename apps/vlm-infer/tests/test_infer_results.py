"""Texts in every format, with scores, reports and what failed; read back by other libraries than wrote them."""

import csv
import json

import pyarrow.parquet as pq
import pytest
import typer

from vlm_infer import cli
from vlm_infer.answering import Answerer
from vlm_infer.processes import Processes

MODEL = ["--model", "tiny-git", "--device", "cpu", "--max-new-tokens", "8"]
TABLE = ["--data", "pictures/questions.csv", "--image-dir", "pictures/photos"]


def test_every_option_has_help():
    command = typer.main.get_command(cli.app)
    assert all(parameter.help for parameter in command.params)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tables_in_three_formats(command, tmp_path):
    """All in the order of the input, with equal texts, whatever the batch size."""
    for name, batch_size in (("a.csv", "3"), ("a.jsonl", "auto"), ("a.parquet", "1")):
        result = command(*MODEL, *TABLE, "--out", name, "--batch-size", batch_size)
        assert result.exit_code == 0 and f"12 texts in {name}" in result.stdout, result.output
        assert "exact_match 0." in result.stdout and "of 12 rows" in result.stdout
    with (tmp_path / "a.csv").open(newline="") as file:
        as_csv = list(csv.DictReader(file))
    as_jsonl, as_parquet = lines(tmp_path / "a.jsonl"), pq.read_table(tmp_path / "a.parquet").to_pylist()
    with (tmp_path / "pictures" / "questions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for written, row, other, third in zip(as_jsonl, rows, as_csv, as_parquet, strict=True):
        assert written["prompt"] == row["question"] and written["image"].endswith(row["image_name"])
        assert written["references"] == [row["answer"]] == json.loads(other["references"]) == third["references"]
        assert written["text"] == other["text"] == third["text"]
        assert written["logprob"] == pytest.approx(float(other["logprob"]), abs=1e-4)
        assert written["logprob"] == pytest.approx(third["logprob"], abs=1e-4) and written["logprob"] < 0
        assert 0 < written["seconds"] < 60
    assert [row["id"] for row in as_jsonl] == [f"questions-{number}" for number in range(2, 14)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["pictures", *(name + end for name in ("a.csv", "a.jsonl", "a.parquet") for end in ("", ".summary.json"))]
    )


def test_scores_are_those_of_the_texts(command, tmp_path):
    result = command(*MODEL, *TABLE, "--out", "a.jsonl")
    right = sum(row["text"].lower() == row["references"][0].lower() for row in lines(tmp_path / "a.jsonl"))
    assert f"exact_match {right / 12:.3f}" in result.stdout
    summary = json.loads((tmp_path / "a.jsonl.summary.json").read_text())
    assert summary["scores"]["exact_match"]["value"] == pytest.approx(right / 12)
    assert "vlm-score a.jsonl" in result.stdout


def test_captions_are_scored_as_captions(command, tmp_path):
    (tmp_path / "captions.csv").write_text("image_name,caption\n0.png,a red square\n1.png,a blue one\n")
    result = command(*MODEL, "--data", "captions.csv", "--image-dir", "pictures/photos")
    assert result.exit_code == 0 and "bleu" in result.stdout and "cider" in result.stdout, result.output


def test_result_files_of_the_official_tools(command, tmp_path):
    """Numbers for ids, and an entry for a row without a text too."""
    questions = [{"question_id": 100 + number, "image_id": number, "question": "what is this?"} for number in (2, 0, 1)]
    annotations = [{"question_id": 100 + number, "answers": [{"answer": "red"}] * 10} for number in (2, 0, 1)]
    (tmp_path / "x_questions.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "x_annotations.json").write_text(json.dumps({"annotations": annotations}))
    places = ["--image-dir", "pictures/photos"]
    result = command(*MODEL, "--data", "x_questions.json", *places, "--out", "vqa.json")
    assert result.exit_code == 0 and "vqa_accuracy" in result.stdout, result.output
    entries = json.loads((tmp_path / "vqa.json").read_text())
    assert [entry["question_id"] for entry in entries] == [102, 100, 101]
    assert all(set(entry) == {"question_id", "answer"} and entry["answer"] for entry in entries)

    images = [{"id": 9, "file_name": "1.png"}, {"id": 4, "file_name": "broken.png"}, {"id": 5, "file_name": "0.png"}]
    captions = [{"image_id": image["id"], "caption": "a square"} for image in images]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": captions}))
    result = command(*MODEL, "--data", "coco.json", *places, "--out", "captions.json")
    assert result.exit_code == 0 and "1 rows skipped" in result.stdout, result.output
    entries = json.loads((tmp_path / "captions.json").read_text())
    assert [entry["image_id"] for entry in entries] == [9, 4, 5] and [bool(e["caption"]) for e in entries] == [1, 0, 1]

    result = command(*MODEL, *[f"--image=pictures/photos/{number}.png" for number in (2, 1)], "--out", "named.json")
    assert [entry["image_id"] for entry in json.loads((tmp_path / "named.json").read_text())] == [2, 1]
    refused = command(*MODEL, *TABLE, "--out", "table.json")
    assert refused.exit_code == 2 and "questions.csv:2 has no id for COCO's or VQA's tools" in refused.stderr


def test_rows_that_fail_are_recorded_and_tried_once_more(command, tmp_path, monkeypatch):
    broken = ["--data", "pictures/broken.csv", "--image-dir", "pictures/photos"]
    asked = []
    answer = Answerer._answer
    monkeypatch.setattr(
        Answerer,
        "_answer",
        lambda self, positions, rows: asked.append(list(positions)) or answer(self, positions, rows),
    )
    result = command(*MODEL, *broken, "--out", "a.jsonl")
    assert result.exit_code == 0 and "12 texts in a.jsonl" in result.stdout and "1 rows skipped" in result.stdout
    (record,) = lines(tmp_path / "a.jsonl.rejected.jsonl")
    assert record["source"].endswith("broken.csv:7") and "broken.png is not an image" in record["reason"]
    assert record["reason"] in result.stderr
    assert asked.count([5]) == 2 and asked[-1] == [5]
    assert [row["id"] for row in lines(tmp_path / "a.jsonl")] == [f"broken-{n}" for n in range(2, 15) if n != 7]


def test_an_image_that_can_be_read_at_the_second_try(command, pictures, tmp_path, monkeypatch):
    from vlm_infer import answering

    decode, tries = answering.vlm_data.collator, []

    def flaky(*arguments):
        collate = decode(*arguments)
        images = collate._images

        def fail_once(rows, given):
            if any(row["image"]["path"].endswith("/1.png") for row in rows) and len(rows) == 1 and len(tries) < 1:
                tries.append(1)
                raise answering.vlm_data.ImageError("not yet")
            if len(rows) > 1 and not tries:
                raise answering.vlm_data.ImageError("one of these")
            return images(rows, given)

        collate._images = fail_once
        return collate

    monkeypatch.setattr(answering.vlm_data, "collator", flaky)
    result = command(*MODEL, "--image", "pictures/photos/0.png", "--image", "pictures/photos/1.png", "--out", "a.jsonl")
    assert result.exit_code == 0 and "2 texts in a.jsonl" in result.stdout and "skipped" not in result.output
    assert [row["image"] for row in lines(tmp_path / "a.jsonl")] == [f"pictures/photos/{n}.png" for n in (0, 1)]


def test_a_question_that_is_too_long_takes_no_other_row_with_it(command, tmp_path):
    (tmp_path / "t.csv").write_text(f"image_name,question\n0.png,what?\n0.png,{'very ' * 2000}\n0.png,who?\n")
    result = command(*MODEL, "--data", "t.csv", "--image-dir", "pictures/photos", "--out", "a.jsonl")
    assert result.exit_code == 0 and "2 texts in a.jsonl" in result.stdout, result.output
    assert "t.csv:3" in result.stderr and "tokens leaves no room" in result.stderr


def test_if_every_row_fails_that_is_an_error(command, tmp_path):
    (tmp_path / "t.csv").write_text("image_name,question\nbroken.png,what?\n")
    for out in ([], ["--out", "a.csv"]):
        result = command(*MODEL, "--data", "t.csv", "--image-dir", "pictures/photos", *out)
        assert result.exit_code == 2 and "no row could be answered; the first: t.csv:2: " in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "t.csv"]


def test_the_terminal(command):
    one = command(*MODEL, "--image", "pictures/photos/0.png")
    assert one.exit_code == 0 and len(one.stdout.splitlines()) == 1
    several = command(*MODEL, *TABLE)
    assert several.stdout.count(".png") == 12 and "what is the color?" in several.stdout


def test_a_report(command, tmp_path):
    result = command(*MODEL, *TABLE, "--out", "a.csv", "--report", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "look at page.html" in result.stdout and page.count("data:image/webp") == 4  # each picture once
    assert "what is the color?" in page and "exact_match" in page
    result = command(*MODEL, "--images", "pictures/photos", "--report", "photos.html")
    page = (tmp_path / "photos.html").read_text()
    assert result.exit_code == 0 and page.count("data:image/webp") == 4 and "not an image" in page


def test_sampling_depends_on_the_seed_and_not_on_the_batches(command, tmp_path):
    options = [*MODEL, *TABLE, "--temperature", "2", "--top-p", "0.95"]
    texts = {}
    for name, more in (("a", ["--batch-size", "5"]), ("b", []), ("c", ["--seed", "1"])):
        assert command(*options, *more, "--out", f"{name}.jsonl").exit_code == 0
        texts[name] = [row["text"] for row in lines(tmp_path / f"{name}.jsonl")]
    assert texts["a"] == texts["b"] != texts["c"]
    assert len(set(texts["a"])) > 6  # rows of the same picture and question length differ


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --image FILE, --images DIR, --data TABLE or --stream SHARDS"),
        (["--image", "a.png", "--images", "."], "give one of --image"),
        (["--image", "a.png", "--image-dir", "."], "--image-dir goes with --data or --stream"),
        (["--image", "a.png", "--out", "a.xlsx"], "must end in .csv or .jsonl"),
        (["--image", "a.png", "--report", "a.pdf"], "must end in .html"),
        (["--image", "a.png", "--batch-size", "0"], "--batch-size 0 must be auto, or a number from 1"),
        (["--image", "a.png", "--top-p", "0.5"], "--top-p goes with --temperature"),
        (["--image", "a.png", "--temperature", "1", "--num-beams", "2"], "give one of them"),
        (["--image", "a.png", "--engine", "spark"], "--engine spark must be local or ray"),
        (["--image", "a.png", "--workers", "2"], "--workers goes with --engine ray"),
        (["--image", "a.png"], "a.png cannot be read"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(command, arguments, message, tmp_path):
    result = command("--model", "tiny-git", *arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_several_processes_need_a_place_to_meet_and_a_file(command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = command(*MODEL, "--image", "pictures/photos/0.png")
    assert result.exit_code == 2 and "MASTER_ADDR is not" in result.stderr
    monkeypatch.setattr(Processes, "of_environment", lambda: Processes(0, 2, 0))
    for more, message in (([], "need --out"), (["--engine", "ray", "--out", "a.csv"], "--engine local")):
        result = command(*MODEL, "--image", "pictures/photos/0.png", *more)
        assert result.exit_code == 2 and message in result.stderr
