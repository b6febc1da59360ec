"""Images are found below the image folder, and nowhere else."""

import os
import unicodedata

import pytest

import vlm_data
from vlm_data import DataError
from vlm_data.image_folder import ImageFolder
from vlm_data.schema import BadRow


@pytest.fixture
def root(tmp_path):
    return tmp_path / "images"


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def find(root, name):
    table = root.parent / "table.csv"
    table.write_text(f'image,caption\n"{name}",words\n')
    path = vlm_data.open(table, image_dir=root)[0]["image"]["path"]
    assert os.path.isabs(path)
    return os.path.relpath(path, root)


def reason(root, name):
    with pytest.raises(DataError) as error:
        find(root, name)
    return str(error.value)


def test_as_given_then_two_character_folders_then_anywhere(root):
    put(root, "deep/er/81abc.jpg")
    assert find(root, "81abc.jpg") == "deep/er/81abc.jpg"
    put(root, "81/81abc.jpg")  # as in Amazon Berkeley Objects
    assert find(root, "81abc.jpg") == "81/81abc.jpg"
    put(root, "81abc.jpg")
    assert find(root, "81abc.jpg") == "81abc.jpg"
    assert find(root, "deep/er/81abc.jpg") == "deep/er/81abc.jpg"
    assert find(root, "deep/../81/81abc.jpg") == "81/81abc.jpg"
    assert find(root, str(root / "81abc.jpg")) == "81abc.jpg"


def test_a_name_may_carry_more_or_fewer_folders_but_no_other_ones(root):
    put(root, "val/1.jpg", "2.jpg")
    assert find(root, "images/2.jpg") == "2.jpg"
    assert find(root, "1.jpg") == "val/1.jpg"
    assert "image not found" in reason(root, "train/1.jpg")


def test_names_may_differ_in_case_and_in_how_accents_are_encoded_and_have_backslashes(root):
    on_mac = unicodedata.normalize("NFD", "Bäume.jpg")
    put(root, on_mac, "IMG_1.JPG", "x/2.jpg", "x/2.JPG", "y/3.jpg")
    assert find(root, "Bäume.jpg") in (on_mac, "Bäume.jpg") and find(root, "img_1.jpg") == "IMG_1.JPG"
    assert find(root, "2.JPG") == "x/2.JPG"
    assert "is ambiguous" in reason(root, "2.Jpg")
    assert find(root, "y\\3.jpg") == find(root, "C:\\photos\\y\\3.JPG") == "y/3.jpg"
    put(root, "y\\3.jpg")
    assert find(root, "y\\3.jpg") == "y\\3.jpg"
    assert "leaves the image folder" in reason(root, "..\\..\\secret.jpg")


def test_two_files_of_one_name_are_ambiguous(root):
    put(root, "x/1.jpg", "y/1.jpg")
    assert f"image '1.jpg' is ambiguous: {root}/x/1.jpg and {root}/y/1.jpg" in reason(root, "1.jpg")
    assert find(root, "y/1.jpg") == "y/1.jpg"


def test_a_link_to_the_same_file_is_not_ambiguous(root):
    put(root, "x/1.jpg", "y/other.jpg")
    (root / "y/1.jpg").symlink_to(root / "x/1.jpg")
    assert find(root, "1.jpg") in ("x/1.jpg", "y/1.jpg")


@pytest.mark.parametrize("name", ["../secret.jpg", "sub/../../secret.jpg", "{outside}/secret.jpg", ".."])
def test_names_that_leave_the_folder(root, name):
    put(root, "sub/1.jpg")
    put(root.parent, "secret.jpg")
    assert "leaves the image folder" in reason(root, name.format(outside=root.parent))


def test_links_that_leave_the_folder(root):
    put(root, "1.jpg")
    put(root.parent, "secret.jpg", "vault/deep.jpg")
    (root / "file.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "sub").mkdir()
    (root / "sub/hidden.jpg").symlink_to("../../secret.jpg")
    (root / "folder").symlink_to(root.parent / "vault")
    for name in ("file.jpg", "hidden.jpg", "folder/deep.jpg"):
        assert "leaves the image folder" in reason(root, name)
    assert "image not found" in reason(root, "deep.jpg")  # linked folders are not searched


def test_a_folder_beside_with_the_same_beginning_is_outside(root):
    put(root, "1.jpg")
    put(root.parent / "images-private", "2.jpg")
    assert "leaves the image folder" in reason(root, "../images-private/2.jpg")


def test_links_within_and_to_the_folder_are_fine(root):
    put(root, "real/1.jpg")
    (root / "link.jpg").symlink_to("real/1.jpg")
    assert find(root, "link.jpg") == "link.jpg"
    alias = root.parent / "alias"
    alias.symlink_to(root)
    assert find(alias, "1.jpg") == "real/1.jpg"
    assert find(alias, str(root / "link.jpg")).endswith("link.jpg")


def test_a_missing_image_is_named_with_the_nearest(root):
    put(root, "sub/kitten.jpg", "dog.jpg", ".hidden/kittens.jpg")
    message = reason(root, "kiten.jpg")
    assert f"image not found: {root}/kiten.jpg (nearest: kitten.jpg)" in message


@pytest.mark.parametrize("name", ["sub", ".", "a\0b.jpg", "x" * 5000])
def test_odd_names_are_bad_rows_not_crashes(root, name):
    put(root, "sub/1.jpg")
    assert "table.csv:2: image" in reason(root, name)


def test_a_name_that_begins_with_dots_does_not_leave(root):
    put(root, "1.jpg")
    assert "image not found" in reason(root, "..nothing.jpg")


@pytest.mark.parametrize("name", ["a\ud800.png", "a\0.png"])
def test_a_name_that_no_file_can_have(root, name):
    root.mkdir(exist_ok=True)
    with pytest.raises(BadRow, match="image name is broken"):
        ImageFolder(root).find(name)
