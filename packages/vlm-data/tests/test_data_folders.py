"""Folders of captions beside folders of images, and train and test parts beside each other."""

import json
import shutil

import pytest

import vlm_data
from vlm_data import DataError


def put(root, *names, text="not opened here"):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def pairs(rows):
    return [
        (image["path"].rsplit("/", 1)[1], texts) for image, texts in zip(rows["image"], rows["references"], strict=True)
    ]


# ---- caption/NAME.txt beside Image/NAME/


def test_a_caption_is_said_of_every_image_of_its_folder(tmp_path):
    put(tmp_path, "caption/reef.txt", text=" a reef\nwith fish \n")
    put(tmp_path, "Image/reef/2.PNG", "Image/reef/1.jpg", "Image/reef/note.md", "Image/reef/.hidden.jpg")
    put(tmp_path, "caption/wreck.TXT", text="a wreck")
    put(tmp_path, "Image/wreck/1.jpg")
    rows = vlm_data.open(tmp_path)
    assert pairs(rows) == [("1.jpg", ["a reef\nwith fish"]), ("2.PNG", ["a reef\nwith fish"]), ("1.jpg", ["a wreck"])]
    assert rows["id"][:] == ["Image/reef/1.jpg", "Image/reef/2.PNG", "Image/wreck/1.jpg"]
    assert rows["source"][0] == f"{tmp_path}/caption/reef.txt" and set(rows["prompt"]) == {None}
    assert pairs(vlm_data.open(tmp_path, format="caption-folders")) == pairs(rows)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"1": "one", "2": "two", "10": "ten"}, ["one", "ten", "two"]),  # keys name the images: 1.jpg, 10.jpg, 2.jpg
        ({"a": "first", "b": "second", "c": "third"}, ["first", "second", "third"]),  # else in the order of names
        (["first", "second", "third"], ["first", "second", "third"]),
    ],
)
def test_json_holds_a_caption_for_each_image(tmp_path, content, expected):
    put(tmp_path, "caption/x.json", text=json.dumps(content))
    put(tmp_path, "Image/x/1.jpg", "Image/x/10.jpg", "Image/x/2.jpg")
    assert pairs(vlm_data.open(tmp_path)) == list(
        zip(["1.jpg", "10.jpg", "2.jpg"], [[one] for one in expected], strict=True)
    )


def test_what_does_not_fit_is_rejected_by_name(tmp_path):
    folder = tmp_path / "data"
    put(folder, "caption/good.txt", text="good")
    put(folder, "caption/empty.txt", text=" \n")
    put(folder, "caption/lonely.txt", "caption/bare.txt", "caption/notes.md")
    put(folder, "caption/few.json", text='{"1": "one"}')
    put(folder, "caption/typed.json", text='[["one"]]')
    put(folder, "caption/broken.json", text="{")
    for name in ("good", "empty", "typed", "broken", "untold", "few"):
        put(folder, f"Image/{name}/1.jpg")
    put(folder, "Image/few/2.jpg", "Image/bare/readme.txt")
    put(tmp_path, "secret.jpg")
    (folder / "Image/good/2.jpg").symlink_to(tmp_path / "secret.jpg")
    rejected = []
    assert pairs(vlm_data.open(folder, rejected=rejected)) == [("1.jpg", ["good"])]
    reasons = {record.source.removeprefix(f"{folder}/"): record.reason for record in rejected}
    expected = {
        "caption/bare.txt": "no images in",
        "caption/broken.json": "not JSON",
        "caption/empty.txt": "caption is empty",
        "caption/few.json": "1 captions for 2 images",
        "caption/good.txt": "leaves the image folder",
        "caption/lonely.txt": "no folder of its images",
        "caption/typed.json": "caption is no text but list",
        "Image/untold": "no caption: ",
    }
    assert reasons.keys() == expected.keys()
    assert all(text in reasons[source] for source, text in expected.items())


def test_a_link_out_of_the_folder_is_no_caption(tmp_path):
    put(tmp_path, "secret.txt", text="secret")
    put(tmp_path, "data/Image/a/1.jpg", "data/caption/b.txt")
    (tmp_path / "data/caption/a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match="leaves the image folder"):
        vlm_data.open(tmp_path / "data")


@pytest.mark.parametrize("link", ["caption", "Image"])
def test_a_linked_folder_is_not_even_listed(tmp_path, link):
    put(tmp_path, "secret/a.txt", "data/Image/a/1.jpg", "data/caption/a.txt")
    shutil.rmtree(tmp_path / "data" / link)
    (tmp_path / "data" / link).symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=f"/{link}' leaves the image folder"):
        vlm_data.open(tmp_path / "data", rejected=[])


# ---- train and test


def test_parts_are_chosen_by_split_and_train_is_the_default(tmp_path):
    put(tmp_path, "train/a_dog.jpg", "train/deep/a_cat.jpg", "test/a_cow.jpg", "val/a_pig.jpg")
    assert vlm_data.splits(tmp_path) == ["train", "validation", "test"]
    assert pairs(vlm_data.open(tmp_path)) == [("a_dog.jpg", ["a dog"]), ("a_cat.jpg", ["a cat"])]
    assert pairs(vlm_data.open(tmp_path, split="test")) == [("a_cow.jpg", ["a cow"])]
    assert pairs(vlm_data.open(tmp_path, split="validation")) == [("a_pig.jpg", ["a pig"])]
    assert len(vlm_data.open(tmp_path, format="file-names")) == 4  # asked for the folder itself
    with pytest.raises(DataError, match="has no split 'dev': its splits are train, validation, test"):
        vlm_data.open(tmp_path, split="dev")


def test_each_part_is_recognised_by_itself(tmp_path):
    put(tmp_path, "Train/Image/a/1.jpg", "Train/Image/a/2.jpg", "test/x.jpg")
    put(tmp_path, "Train/caption/a.txt", text="two views")
    put(tmp_path, "test/test.csv", text="image_id,caption\nx,one view\n")
    assert pairs(vlm_data.open(tmp_path)) == [("1.jpg", ["two views"]), ("2.jpg", ["two views"])]
    assert pairs(vlm_data.open(tmp_path, split="test")) == [("x.jpg", ["one view"])]


def test_a_table_without_a_part_in_its_name_is_shared(tmp_path, caplog):
    """captions.csv beside train/ and test/; a bare name that is in both is the training image."""
    put(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg", "test/3.jpg", "test/4.jpg", "other/5.jpg")
    lines = ["1.jpg,in both", "2.jpg,in train", "3.jpg,in test", "test/1.jpg,named", "4.jpg,", "6.jpg,no", "5.jpg,x"]
    put(tmp_path, "captions.csv", text="\n".join(lines))
    rejected, of_test = [], []
    assert pairs(vlm_data.open(tmp_path, rejected=rejected)) == [("1.jpg", ["in both"]), ("2.jpg", ["in train"])]
    rows = vlm_data.open(tmp_path, split="test", rejected=of_test)
    assert pairs(rows) == [("3.jpg", ["in test"]), ("1.jpg", ["named"])]
    assert rows["image"][1]["path"] == str(tmp_path / "test/1.jpg")
    assert [record.source.rsplit(":", 1)[1] for record in rejected] == ["5", "6", "7"] and of_test == []
    for record, reason in zip(rejected, ["caption is empty", "image not found", "in none of the folders"], strict=True):
        assert reason in record.reason


def test_tables_named_by_part(tmp_path):
    put(tmp_path, "train/1.jpg", "test/1.jpg", "images/9.jpg")
    put(tmp_path, "captions_train.csv", text="1.jpg,of train\n")
    put(tmp_path, "test_captions.csv", text="1.jpg,of test\n")
    assert vlm_data.splits(tmp_path) == ["train", "test"]
    for split in ("train", "test"):
        rows = vlm_data.open(tmp_path, split=split)
        assert pairs(rows) == [("1.jpg", [f"of {split}"])]
        assert rows["image"][0]["path"] == str(tmp_path / split / "1.jpg")


def test_tables_named_by_part_beside_one_folder_of_images(tmp_path):
    put(tmp_path, "images/1.jpg", "images/2.jpg")
    put(tmp_path, "train.csv", text="image,caption\n1.jpg,a\n")
    put(tmp_path, "val.csv", text="image,caption\n2.jpg,b\n")
    assert pairs(vlm_data.open(tmp_path)) == [("1.jpg", ["a"])]
    assert pairs(vlm_data.open(tmp_path, split="validation")) == [("2.jpg", ["b"])]


def test_parts_and_tables_that_are_linked_from_elsewhere_are_refused(tmp_path):
    put(tmp_path, "elsewhere/a_dog.jpg", "data/test/a_cat.jpg")
    (tmp_path / "data/train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="train' leaves the image folder .*; give that path itself"):
        vlm_data.open(tmp_path / "data")


def test_what_was_recognised_is_said(tmp_path, caplog):
    put(tmp_path, "a.jpg")
    put(tmp_path, "t.csv", text="image_name,question\na.jpg,what?\n")
    with caplog.at_level("INFO", "vlm_data"):
        vlm_data.open(tmp_path)
    (message,) = caplog.messages
    assert message == (
        f"{tmp_path}/t.csv: read as questions-csv: a table with the columns image_name, question; "
        "another one can be named as format"
    )


def test_a_folder_without_parts(tmp_path):
    put(tmp_path, "a_dog.jpg", "tests/x.jpg")
    assert vlm_data.splits(tmp_path) == [] == vlm_data.splits(tmp_path / "a_dog.jpg")
    with pytest.raises(DataError, match="has no split 'train': it has none; use vlm_data.split"):
        vlm_data.open(tmp_path, split="train")
    put(tmp_path, "deep/captions.csv")
    with pytest.raises(DataError, match="holds captions.csv: give one file's path"):
        vlm_data.open(tmp_path)
