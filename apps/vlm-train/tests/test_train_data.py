"""What is trained and evaluated on, from folders with parts of their own; and --describe."""

import json

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import vlm_data
import vlm_models
from vlm_train import cli
from vlm_train import run as training
from vlm_train.engine.evaluate import LOSS, evaluation_of, metrics_of
from vlm_train.options.checks import METRICS
from vlm_train.options.config import TrainConfig
from vlm_train.rows.data import collator_of, read_data


def draw(root, *names, seed=0):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)


def read(data, **options):
    console = Console(record=True, width=500)
    found = read_data(TrainConfig(data=str(data), **options), console)
    return found, console.export_text()


def texts(rows):
    return sorted(references[0] for references in rows["references"])


def test_own_parts_are_used_and_what_was_recognised_is_said(tmp_path):
    draw(tmp_path, "train/a.png", "train/b.png", "test/c.png", "val/d.png")
    found, said = read(tmp_path)
    assert texts(found.train) == ["a", "b"] and texts(found.val) == ["d"]
    assert f"{tmp_path}/train: read as file-names: it holds images and no table" in said


def test_pictures_in_both_parts_stop_the_run_unless_allowed(tmp_path):
    draw(tmp_path, "train/a.png", "train/b.png", "test/c.png")
    Image.open(tmp_path / "train/b.png").save(tmp_path / "test/other name.bmp")
    with pytest.raises(vlm_data.DataError, match=r"1 pictures are .*/b\.png and .*other name\.bmp; .*--allow-overlap"):
        read(tmp_path)
    assert texts(read(tmp_path, allow_overlap=True)[0].val) == ["c", "other name"]


@pytest.mark.parametrize("table", ["train/captions.csv", "captions.csv"])
def test_a_test_part_without_texts_is_not_evaluated_on(tmp_path, table):
    draw(tmp_path, *(f"train/{n}.png" for n in range(8)), "test/8.png")
    (tmp_path / table).write_text("".join(f"{n}.png,caption {n}\n" for n in range(8)))
    if table.startswith("train"):
        (tmp_path / "test/t.csv").write_text("image_name,question\n8.png,what?\n")
    found, said = read(tmp_path)
    assert texts(found.train) + texts(found.val) != [] and len(found.train) + len(found.val) == 8
    assert "test part not used: " in said


def test_columns_and_rejected_rows_of_both_parts(tmp_path):
    draw(tmp_path, "train/a.png", "test/c.png")
    for part, name in (("train", "a.png"), ("test", "c.png")):
        (tmp_path / part / "broken.png").write_bytes(b"junk")
        lines = [
            {"photo": name, "title": part},
            {"photo": "broken.png", "title": "x"},
            {"photo": "gone.png", "title": "x"},
        ]
        (tmp_path / part / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, _ = read(tmp_path, columns="image=photo,references=title")
    assert texts(found.train) == ["train"] and texts(found.val) == ["test"]
    assert [record.source.rsplit("/", 2)[1:] for record in found.rejected] == [
        [part, f"rows.jsonl:{line}"] for part in ("train", "test") for line in (3, 2)
    ]
    with pytest.raises(vlm_data.DataError, match=r"2 of 3 rows .* \(0 tolerated, see --max-rejected\)"):
        read(tmp_path, columns="image=photo,references=title", max_rejected=0)


def test_a_table_without_answers_is_told_and_how_to_name_theirs(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("image_name,question\na.png,what?\n")
    with pytest.raises(vlm_data.DataError, match=r"none of its rows has an answer .* --columns references=NAME"):
        read(tmp_path / "t.csv")


def test_what_the_model_refuses_is_told_before_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "read_data", lambda *_: pytest.fail("read"))
    for options, told in (({"model": "tiny-gti"}, "did you mean tiny-git"), ({"dtype": "float8"}, "unknown dtype")):
        with pytest.raises(vlm_models.ModelError, match=told):
            training.run(TrainConfig(**options, device="cpu", out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_answers_are_spread_and_drawn_and_images_shrunk_as_asked(tmp_path):
    draw(tmp_path, *(f"{n}.png" for n in range(20)))
    Image.open(tmp_path / "0.png").resize((80, 160)).save(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text(
        "image_name,question,answer\n" + "".join(f"{n}.png,what?,{n % 2}\n" for n in range(20))
    )
    options = {"stratify": True, "val_fraction": 0.2, "answer_choice": "sample", "max_image_tokens": 8, "seed": 3}
    config = TrainConfig(data=str(tmp_path / "t.csv"), **options)
    console = Console(record=True, width=500)
    data = read_data(config, console)
    assert texts(data.val) == ["0", "0", "1", "1"]
    collate = collator_of(config, vlm_models.load("tiny-qwen2-vl", device="cpu"), data, console)
    assert (
        "20 of 20 images are shrunk to 8 tokens; the largest has 16 (see --max-image-tokens)" in console.export_text()
    )
    assert (collate.answer_choice, collate.seed, collate.max_length) == ("sample", 3, 512)
    assert len(collate.image_ids(collate.outline(data.train[0]["image"]))) <= 8


def test_describe_prints_and_draws_each_part(tmp_path):
    draw(tmp_path / "data", "train/a_dog.png", "train/b.png", "test/c.png")
    (tmp_path / "data/train/__.png").write_bytes(b"")
    result = CliRunner(env={"COLUMNS": "300"}).invoke(
        cli.app, ["--data", str(tmp_path / "data"), "--describe", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "2 rows: 2 captions" in result.stdout and "1 rows: 1 captions" in result.stdout
    assert "__.png: the file name holds no caption" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"data-train.png", "data-test.png"}
    assert Image.open(tmp_path / "out/data-train.png").width == 2 * 234 + 14


def test_describe_of_what_cannot_be_read_is_one_line(tmp_path):
    result = CliRunner().invoke(cli.app, ["--data", str(tmp_path / "nothing.csv"), "--describe"])
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_the_metrics_are_those_that_suit_the_rows():
    def rows(prompts, references):
        return Dataset.from_dict({"prompt": prompts, "references": references})

    assert list(metrics_of(rows(["q"], [["a"]]))) == ["exact_match"]
    assert metrics_of(rows(["q", None], [["a", "b"], ["c"]])) == {
        "exact_match": [0, 1],
        "vqa_accuracy": [0],
        "bleu": [1],
    }
    many = rows([None] * 100, [[f"a caption of {number}"] for number in range(100)])
    found = evaluation_of([text for (text,) in many["references"]], 0.0, many).scores
    assert {*found, "vqa_accuracy", LOSS} == set(METRICS)
    assert list(found) == ["cider", "bleu", "exact_match"] and found["cider"].value == pytest.approx(10)
