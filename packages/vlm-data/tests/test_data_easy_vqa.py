"""easy-VQA from the data folder of its distribution, against that folder's own files."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

import vlm_data
from vlm_data import DataError
from vlm_data.sources import easy_vqa

spec = find_spec("easy_vqa")
installed = pytest.mark.skipif(spec is None, reason="easy-vqa is not installed")


@pytest.mark.slow
@installed
@pytest.mark.parametrize(("split", "count", "images"), [("train", 38_575, 4_000), ("test", 9_673, 1_000)])
def test_all_rows_as_they_are(split, count, images):
    folder = Path(spec.origin).parent / "data" / split
    rows = vlm_data.open("easy-vqa", split=split)
    assert len(rows) == count and len({image["path"] for image in rows["image"]}) == images
    expected = json.loads((folder / "questions.json").read_text())
    found = zip(rows["prompt"], rows["references"], rows["image"], strict=True)
    assert [[question, answer, int(Path(image["path"]).stem)] for question, (answer,), image in found] == expected
    assert all(Path(path).is_file() for path in {image["path"] for image in rows["image"]})
    assert rows[17]["id"] == f"easy-vqa-{split}-17" and len(set(rows["id"])) == count
    assert rows[17]["source"] == f"easy-vqa/{split}/questions.json[17]"
    assert rows.features == vlm_data.FEATURES


@installed
def test_train_is_the_default_split():
    assert vlm_data.open("easy-vqa")["id"][0] == "easy-vqa-train-0"


def test_unknown_splits_are_refused():
    with pytest.raises(DataError, match="easy-vqa has no split 'val'; its splits are train and test"):
        vlm_data.open("easy-vqa", split="val")


def test_without_the_distribution_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'vlm-data\[samples\]'"):
        vlm_data.open("easy-vqa")
