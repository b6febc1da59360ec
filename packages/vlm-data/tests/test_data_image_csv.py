"""Tables of images alone."""

import pytest

from vlm_data import DataError, open

HEADERS = {
    "image_name\na.png\nb.png\n": ["a.png", "b.png"],
    "note,File_Name\nred,a.png\n": ["a.png"],
    "image_id\na\n": ["a.png"],
    "a.png,b.png\n": ["a.png"],  # no header: the second cell is a text
}


@pytest.mark.parametrize("table", HEADERS)
def test_only_the_image_column_is_read(tmp_path, table):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text(table)
    rows = open(tmp_path / "t.csv", format="images-csv")
    assert [image["path"] for image in rows["image"]] == [str(tmp_path / name) for name in HEADERS[table]]
    assert set(rows["prompt"]) == {None} and rows["references"][:] == [[]] * len(rows)


def test_without_an_image_column_it_says_which_are_known(tmp_path):
    (tmp_path / "t.csv").write_text("photo\na.png\n")
    with pytest.raises(DataError, match="columns found: photo; needed: .*image_name, file_name"):
        open(tmp_path / "t.csv", format="images-csv")
