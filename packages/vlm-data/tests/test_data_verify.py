"""verify: every unique image is decoded once; bad ones are dropped and recorded with all their rows."""

import io
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

import vlm_data
from vlm_data import DataError, Rejected, verifying


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def table(tmp_path):
    """Six rows: of two good images, an HTML page (twice) and a picture that is cut off."""
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "cut.png").write_bytes(png(3)[:1000])
    names = ["a.png", "page.jpg", "b.png", "cut.png", "page.jpg", "a.png"]
    lines = [f"{name},caption {index}\n" for index, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("".join(lines))
    return tmp_path / "table.csv"


def test_bad_images_are_dropped_and_every_row_of_theirs_recorded(table):
    rejected = []
    rows = vlm_data.verify(vlm_data.open(table), rejected)
    assert rows["references"][:] == [["caption 0"], ["caption 2"], ["caption 5"]]
    assert list(rows.features) == [*vlm_data.FEATURES, "pixels"]
    assert rows["pixels"][0] == rows["pixels"][2] == vlm_data.pixel_key(vlm_data.decode(rows[0]["image"]))
    assert [record.source for record in rejected] == [f"{table}:{line}" for line in (2, 4, 5)]
    page, cut = f"{table.parent}/page.jpg is HTML text, not an image", f"{table.parent}/cut.png is cut off"
    assert [record.reason[: len(cut)] for record in rejected] == [page[: len(cut)], cut, page[: len(cut)]]
    assert rejected[0] == Rejected(f"{table}:2", page)


def test_without_a_list_the_first_bad_row_is_raised(table):
    with pytest.raises(DataError, match=r"table\.csv:2: .*page\.jpg is HTML text, not an image"):
        vlm_data.verify(vlm_data.open(table), None)


def test_each_image_is_decoded_once_and_progress_counts_them(table, monkeypatch):
    decoded = Counter()

    def counting(image):
        decoded[image["path"]] += 1
        return vlm_data.decode(image)

    monkeypatch.setattr(verifying, "decode", counting)
    calls = []
    vlm_data.verify(vlm_data.open(table), [], lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(decoded) == 4 and set(decoded.values()) == {1}


def test_a_file_that_vanished_is_a_bad_image(table):
    rows = vlm_data.open(table)
    (table.parent / "a.png").unlink()
    rejected = []
    assert len(vlm_data.verify(rows, rejected)) == 1
    assert rejected[0].reason.endswith("a.png cannot be read: No such file or directory")


def test_images_as_bytes():
    good, bad = {"path": None, "bytes": png(1)}, {"path": None, "bytes": b"junk"}
    columns = {"id": ["0", "1", "2"], "image": [good, bad, good], "prompt": [None] * 3}
    columns |= {"references": [["x"]] * 3, "source": ["s0", "s1", "s2"]}
    rows = datasets.Dataset.from_dict(columns, features=vlm_data.FEATURES)
    rejected, calls = [], []
    kept = vlm_data.verify(rows, rejected, lambda done, total: calls.append(total))
    assert kept["id"][:] == ["0", "2"] and calls == [2, 2]
    assert [record.source for record in rejected] == ["s1"]


def test_good_rows_are_returned_as_they_are():
    rows = vlm_data.open("scenes", size=4)
    verified = vlm_data.verify(rows, None)
    assert verified.remove_columns("pixels")[:] == rows[:]
    assert vlm_data.verify(verified, None)[:] == verified[:]
