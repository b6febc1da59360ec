"""vlm-score on every kind of file, and on what it must refuse."""

import csv
import json

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import vlm_eval
from vlm_score import cli

ANSWERS = [
    {"question_id": 1, "answers": ["red"] * 6 + ["blue"] * 4, "image_id": 10, "answer_type": "other"},
    {"question_id": 2, "answers": ["yes"] * 10, "image_id": 10, "answer_type": "yes/no"},
    {"question_id": 3, "answers": ["2", "two"] * 5, "image_id": 11, "answer_type": "number"},
]
SAID = {1: "Blue", 2: "no", 3: "two"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    annotations = [
        {**a, "answers": [{"answer": x, "answer_id": i} for i, x in enumerate(a["answers"])]} for a in ANSWERS
    ]
    questions = [{"question_id": a["question_id"], "image_id": a["image_id"], "question": "what?"} for a in ANSWERS]
    save("vqa.json", {"annotations": annotations})
    save("questions.json", {"questions": questions})
    save("results.json", [{"question_id": key, "answer": text} for key, text in SAID.items()])
    images = [{"id": 10, "file_name": "a.png"}, {"id": 11, "file_name": "b.png"}]
    captions = [(10, "a red dog"), (11, "two cats"), (10, "the dog runs")]
    coco = [{"id": 90 + n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    save("coco.json", {"images": images, "annotations": coco})
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red").save(f"{name}.png")
    return tmp_path


def save(name, content):
    with open(name, "w", encoding="utf-8") as file:
        if name.endswith(".jsonl"):
            file.writelines(json.dumps(record) + "\n" for record in content)
        elif isinstance(content, str):
            file.write(content)
        else:
            json.dump(content, file)


def score(*arguments):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [*arguments, "--out", "out"])
    assert result.exit_code == 0, result.stderr or result.exception
    return json.loads(open("out/scores.json", encoding="utf-8").read())


@pytest.mark.parametrize(
    ("separator", "encoding", "line_end"),
    [(",", "utf-8", "\n"), (";", "utf-8-sig", "\r\n"), (";", "cp1252", "\r\n"), ("\t", "utf-16", "\r\n")],
)
def test_tables_as_spreadsheets_write_them(separator, encoding, line_end, folder):
    rows = [["Bild", "Frage", "Antwort"], ["Küche, 1.png", "rot; oder blau?", "grün"], ["b.png", "rot?", "Öl"]]
    for name, said in (("truth.csv", "grün"), ("said.csv", "blau")):
        with open(name, "w", encoding=encoding, newline="") as file:
            rows[1][2] = said
            csv.writer(file, delimiter=separator, lineterminator=line_end).writerows(rows)
    columns = ["--prediction-column", "Antwort", "--reference-column", "Antwort", "--id-column", "Bild"]
    record = score("said.csv", "--references", "truth.csv", *columns, "--metrics", "exact_match")
    assert values(record) == {"exact_match": 0.5}
    with open("out/rows.csv", encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert "blau" in first.values() and any("grün" in value for value in first.values())


def values(record, run=0):
    return {name: score["value"] for name, score in record["runs"][run]["scores"].items()}


def lines():
    with open("out/rows.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refuses(*arguments):
    result = CliRunner().invoke(cli.app, [*arguments, "--out", "out"])
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


def test_every_option_has_help():
    assert all(parameter.help for parameter in typer.main.get_command(cli.app).params)


def test_vqa_results(folder):
    record = score("results.json", "--references", "vqa.json", "--questions", "questions.json")
    expected = vlm_eval.vqa_accuracy(list(SAID.values()), [a["answers"] for a in ANSWERS])
    assert record["runs"][0]["scores"]["vqa_accuracy"]["signature"] == expected.signature
    assert values(record)["vqa_accuracy"] == expected.value and record["rows"] == 3
    assert [line["question"] for line in lines()] == ["what?"] * 3
    assert '"answer_type":"yes/no"' in (folder / "out/report.html").read_text()
    assert "| vqa_accuracy |" in (folder / "out/scores.md").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", [{"image_id": 11, "caption": "two dogs"}, {"image_id": 10, "caption": "a red dog"}]),
        ("p.json", {"a": "a red dog", "b": "two dogs"}),
        ("p.jsonl", [{"image": "photos/b.png", "text": "two dogs"}, {"image": "photos/a.png", "text": "a red dog"}]),
        ("p.csv", "image_name,caption\nb.png,two dogs\na.png,a red dog\n"),
    ],
)
def test_captions_are_joined_with_coco_annotations(folder, name, content):
    save(name, content)
    record = score(name, "--references", "coco.json", "--metrics", "bleu,exact_match")
    references = [["a red dog", "the dog runs"], ["two cats"]]
    assert values(record)["bleu"] == vlm_eval.bleu(["a red dog", "two dogs"], references).value
    assert [json.loads(line["references"]) for line in lines()] == references
    if name != "p.json" or isinstance(content, dict):
        assert [line["image"] for line in lines()] == ["a.png", "b.png"]


def test_a_run_holds_its_references_and_pictures(folder):
    (folder / "run").mkdir()
    row = {
        "id": "x",
        "image": "a.png",
        "prompt": None,
        "references": ["a dog"],
        "prediction": "a dog",
        "exact_match": 1,
    }
    save("run/predictions.jsonl", [row, {**row, "id": "y", "prompt": "which?", "prediction": "cat"}])
    record = score("run", "--metrics", "exact_match")
    assert values(record) == {"exact_match": 0.5} and record["runs"][0]["name"] == "run"
    assert '"picture":0' in (folder / "out/report.html").read_text()


def test_the_results_go_beside_the_predictions(folder):
    save("p.csv", "prediction,answer\na,a\nb,c\n")
    result = CliRunner().invoke(cli.app, ["p.csv", "--metrics", "exact_match"])
    assert result.exit_code == 0 and "2 rows in p-scores" in result.stdout
    names = {path.name for path in (folder / "p-scores").iterdir()}
    assert names == {"scores.json", "scores.md", "rows.csv", "report.html"}


def test_failed_and_empty_predictions_count_as_wrong_and_are_shown(folder):
    said = [{"prediction": "a"}, {"prediction": None}, {"prediction": " "}, {"prediction": "a", "error": "timeout"}]
    save("p.jsonl", [{**p, "references": ["a"]} for p in said])
    record = score("p.jsonl", "--metrics", "exact_match,bleu")
    assert values(record)["exact_match"] == 0.25 and record["runs"][0]["failed"] == 3
    assert [line["failed"] for line in lines()] == ["", "no prediction", "empty", "timeout"]
    assert '"failed":"timeout"' in (folder / "out/report.html").read_text()


def test_missing_and_extra_ids_are_listed_and_refused_unless_partial(folder):
    save("p.json", [{"question_id": 1, "answer": "blue"}, {"question_id": 7, "answer": "x"}])
    said = refuses("p.json", "--references", "vqa.json")
    assert "2 ids without a prediction: 2, 3; 1 predictions without references: 7" in said and "--partial" in said
    assert not (folder / "out").exists()
    record = score("p.json", "--references", "vqa.json", "--partial")
    assert record["left_out"] == {"missing": ["2", "3"], "extra": ["7"]} and record["rows"] == 1


def test_a_question_asked_twice_is_one_row_with_the_references_of_both(folder):
    save("p.csv", "image,question,text\na.png,what?,cat\na.png,what?,cat\n")
    save("gold.csv", "image_name,question,answer\na.png,what?,dog\na.png,what?,cat\n")
    record = score("p.csv", "--references", "gold.csv", "--metrics", "exact_match")
    assert values(record) == {"exact_match": 1} and record["rows"] == 1


def test_two_runs_side_by_side_clustered_by_image(folder):
    save("other.json", [{"question_id": key, "answer": "red"} for key in (3, 2, 1)])
    record = score("results.json", "--references", "vqa.json", "--against", "other.json", "--metrics", "vqa_accuracy")
    assert [run["name"] for run in record["runs"]] == ["results", "other"]
    comparison = record["comparisons"]["vqa_accuracy"]
    expected = [a - b for a, b in zip([1, 0, 1], [1, 0, 0], strict=True)]
    assert comparison["difference"] == sum(expected) / 3 and comparison["better"] == 1
    assert lines()[0]["prediction_a"] == "Blue" and lines()[0]["prediction_b"] == "red"


def test_named_columns(folder):
    save("p.csv", "key,mine,gold\n1,a,a\n2,b,a\n")
    columns = ["--prediction-column", "mine", "--reference-column", "gold"]
    assert values(score("p.csv", *columns, "--metrics", "exact_match")) == {"exact_match": 0.5}
    save("gold.csv", "key,gold\n2,b\n1,x\n")
    joined = score("p.csv", "--references", "gold.csv", *columns, "--id-column", "key", "--metrics", "exact_match")
    assert values(joined) == {"exact_match": 0.5} and [line["id"] for line in lines()] == ["2", "1"]


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("p.csv", "prediction\na\n", [], "p.csv:2: no reference among the fields (prediction); name it with --ref"),
        ("p.csv", "x,answer\na,b\n", ["--prediction-column", "y"], "no field 'y' (x, answer)"),
        ("p.csv", "prediction,answer\na,b,c\n", [], "p.csv:2: not 2 fields"),
        ("p.csv", "prediction,answer\n", [], "holds no rows"),
        ("p.jsonl", "{\n", [], "p.jsonl:1: not JSON"),
        ("p.json", "3", [], "neither a list of records"),
        ("p.txt", "", [], "give a .csv"),
        (
            "p.json",
            '[{"image_id": 1, "caption": "a"}]',
            ["--references", "missing.json"],
            "missing.json cannot be read",
        ),
        ("p.json", '[{"x": 1, "caption": "a"}]', ["--references", "vqa.json"], "they share no ids"),
        (
            "p.csv",
            "image_id,caption\n10,a\n10,b\n",
            ["--references", "coco.json"],
            "two different predictions for image_id 10 (p.csv:2",
        ),
        ("p.csv", "prediction,answer\na,b\n", ["--metrics", "blue"], "no metric blue; there are exact_match"),
        ("p.csv", "prediction,answer\na,b\n", ["--metrics", "clip_score"], "say with --image-dir"),
        ("p.jsonl", '{"prediction": "a", "references": []}\n', [], "p.jsonl:1: no reference in 'references'"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(folder, name, content, arguments, message):
    (folder / name).write_text(content)
    assert message in refuses(name, *arguments)
