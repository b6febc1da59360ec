"""What `open` accepts, and how it refuses the rest."""

import os

import pytest

import vlm_data
from vlm_data import DataError


def test_scenes_are_reproducible_and_their_size_is_a_choice():
    rows = vlm_data.open("scenes", size=3, seed=1)
    assert rows.features == vlm_data.FEATURES
    assert len({vlm_data.content_key(image) for image in rows["image"]}) == 3
    assert rows[:] == vlm_data.open("scenes", split="train", size=3, seed=1)[:]
    assert rows["image"][0] != vlm_data.open("scenes", size=3, seed=2)["image"][0]
    assert rows["image"][0] != vlm_data.open("scenes", split="test", size=3, seed=1)["image"][0]


def test_relative_paths_survive_a_change_of_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").touch()
    (tmp_path / "data/t.csv").write_text("a.png,x\n")
    monkeypatch.chdir(tmp_path)
    rows = vlm_data.open("data/t.csv")
    assert rows["source"][0] == os.path.join("data", "t.csv:1")
    assert rows["image"][0]["path"] == str(tmp_path / "data/a.png")
    assert vlm_data.open("data/t.csv", image_dir="data")["image"][0]["path"] == str(tmp_path / "data/a.png")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("easy_vqa", {}, r"easy_vqa: no such file or folder \(nearest: easy-vqa\); named sources: easy-vqa, scenes"),
        ("folder/tabel.csv", {}, r"tabel.csv: no such file or folder \(nearest: table.csv\)"),
        ("no/where.csv", {}, "no/where.csv: no such file or folder; named sources"),
        ("folder/table.csv", {"format": "caption-csv"}, r"unknown format 'caption-csv' \(nearest: captions-csv"),
        ("folder/table.csv", {"split": "train"}, "has no split .train.*use vlm_data.split"),
        ("folder/table.csv", {"size": 3}, "size is for scenes only"),
        ("easy-vqa", {"size": 3}, "size is for scenes only"),
        ("scenes", {"image_dir": "folder"}, "image_dir and format are for paths"),
        ("easy-vqa", {"format": "captions-csv"}, "image_dir and format are for paths"),
        ("folder/table.csv", {"format": "file-names"}, "format 'file-names' reads a folder"),
        ("folder", {"format": "captions-csv"}, "format 'captions-csv' reads a file"),
    ],
)
def test_refusals_say_what_to_do(tmp_path, monkeypatch, data, options, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/table.csv").write_text("image,caption\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        vlm_data.open(data, **options)
    assert isinstance(error.value, ValueError)
