"""A folder of images whose names are captions."""

import pytest

import vlm_data
from vlm_data import DataError


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not opened here")


def test_names_become_captions(tmp_path):
    put(tmp_path, "a_red-car.jpg", "St. Mary's v1.5.PNG", "sub/deep/two__dogs -.jpeg")
    put(tmp_path, "notes.txt", ".cache/x.jpg", "._b.jpg")  # not images, or hidden
    rows = vlm_data.open(tmp_path)
    assert list(zip(rows["id"], rows["references"], strict=True)) == [
        ("St. Mary's v1.5.PNG", ["St. Mary's v1.5"]),
        ("a_red-car.jpg", ["a red car"]),
        ("sub/deep/two__dogs -.jpeg", ["two dogs"]),
    ]
    assert [image["path"] for image in rows["image"]] == [str(tmp_path / name) for name in rows["id"]]
    assert rows["source"][:] == [str(tmp_path / name) for name in rows["id"]]
    assert set(rows["prompt"]) == {None}


def test_names_without_words_and_links_that_leave_are_rejected(tmp_path):
    root = tmp_path / "images"
    put(root, "_-_.jpg", "fine.jpg")
    put(tmp_path, "secret.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    rejected = []
    assert vlm_data.open(root, rejected=rejected)["id"][:] == ["fine.jpg"]
    reasons = {record.source: record.reason for record in rejected}
    assert reasons.keys() == {f"{root}/_-_.jpg", f"{root}/link.jpg"}
    assert reasons[f"{root}/_-_.jpg"] == "the file name holds no caption"
    assert "leaves the image folder" in reasons[f"{root}/link.jpg"]
    with pytest.raises(DataError, match="_-_.jpg: the file name holds no caption"):
        vlm_data.open(root)


def test_folders_that_cannot_be_meant(tmp_path):
    with pytest.raises(DataError, match="no images"):
        vlm_data.open(tmp_path)
    put(tmp_path, "a.jpg")
    with pytest.raises(DataError, match="leave image_dir out"):
        vlm_data.open(tmp_path, image_dir=tmp_path)
    put(tmp_path, "captions.csv")
    with pytest.raises(DataError, match="captions.csv: columns found: not opened here"):
        vlm_data.open(tmp_path)
    put(tmp_path, "more.tsv")
    with pytest.raises(DataError, match="holds captions.csv and more.tsv: give one file's path, or format='file-n"):
        vlm_data.open(tmp_path)
    assert vlm_data.open(tmp_path, format="file-names")["references"][:] == [["a"]]
