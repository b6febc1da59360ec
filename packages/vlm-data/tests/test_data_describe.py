"""describe and contact_sheet, on a data set whose every number is known."""

import json

import numpy as np
import pytest
from PIL import Image

import vlm_data
from vlm_data.describing import _histogram


def picture(seed, size=(40, 30)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def rows(tmp_path):
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "copy of a.bmp")
    picture(0, (80, 60)).save(tmp_path / "large a.png")
    picture(1, (16, 64)).save(tmp_path / "b.png")
    (tmp_path / "broken.png").write_bytes(b"<html>")
    records = [
        {"image": "a.png", "question": "what is it?", "answer": ["dog", "dog", "a cat"]},
        {"image": "copy of a.bmp", "question": "what is it?", "answer": "dog"},  # repeated: the same picture
        {"image": "large a.png", "question": "what is it?", "answer": "dog"},
        {"image": "b.png", "question": "how many legs are there on the thing?", "answer": None},
        {"image": "broken.png", "question": "why?", "answer": "x"},
        {"image": "broken.png", "question": "why?", "answer": "x"},
    ]
    (tmp_path / "t.json").write_text(json.dumps(records))
    return vlm_data.open(tmp_path / "t.json")


def test_every_number(rows, tmp_path):
    found = vlm_data.describe(rows)
    assert found.as_dict() == {
        "turns": {},
        "images": {},
        "rows": 6,
        "captions": 0,
        "questions": 6,
        "without_reference": 1,
        "references": 7,
        "pictures": 3,
        "longer_side": {"33-64": 2, "65-128": 1},
        "sizes": {"40x30": 1, "80x60": 1, "16x64": 1},
        "prompt_words": {"1": 2, "2": 0, "3-4": 3, "5-8": 1},
        "reference_words": {"1": 6, "2": 1},
        "top_references": {"dog": 4, "x": 2, "a cat": 1},
        "distinct_references": 3,
        "repeated": 1,
        "copies": [[f"{tmp_path}/a.png", f"{tmp_path}/copy of a.bmp"]],
        "look_alikes": [(f"{tmp_path}/a.png", f"{tmp_path}/large a.png", found.look_alikes[0][2])],
        "broken": [f"{tmp_path}/broken.png is HTML text, not an image"],
    }
    assert found.look_alikes[0][2] <= 4
    page = str(found)
    for text in (
        "6 rows: 0 captions, 6 questions; 1 without a reference",
        "3 distinct pictures; the most frequent sizes: 40x30 (1), 80x60 (1), 16x64 (1)",
        "   33-64 " + "█" * 40 + " 2\n",
        "  65-128 " + "█" * 20 + " 1\n",
        "1 rows ask again",
        "a.png = ",
        "broken.png is HTML text",
    ):
        assert text in page


def test_rows_of_bytes():
    found = vlm_data.describe(vlm_data.open("scenes", size=3))
    assert found.pictures == 3 and found.captions == 3 and found.broken == []


@pytest.mark.parametrize(
    ("value", "label"), [(0, "0"), (1, "1"), (2, "2"), (3, "3-4"), (4, "3-4"), (5, "5-8"), (8, "5-8"), (9, "9-16")]
)
def test_bins_double(value, label):
    assert _histogram([value]) == {label: 1}


def test_the_sheet_shows_each_chosen_picture_with_its_texts(rows):
    sheet = np.asarray(vlm_data.contact_sheet(rows.select(range(4))))
    side, gap = 220, 14
    assert sheet.shape[1] == 4 * (side + gap) + gap
    for column, row in enumerate(rows.select(range(4))):
        cell = sheet[gap:, gap + column * (side + gap) :][:, :side]
        shown = vlm_data.decode(row["image"])
        scale = side / max(shown.size)
        size = [round(length * scale) for length in shown.size]
        how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
        expected = np.asarray(shown.resize(size, how))
        left = (side - size[0]) // 2
        np.testing.assert_array_equal(cell[side - size[1] : side, left : left + size[0]], expected)
        blue = (np.abs(cell[side:].astype(int) - (0x1A, 0x5F, 0xB4)).max(-1) == 0).sum()
        dark = (np.abs(cell[side:].astype(int) - 0x20).max(-1) == 0).sum()
        assert blue > 20 and dark > 20  # some ink of the reference and of the prompt


def test_sheets_are_reproducible_and_take_any_number_of_rows():
    rows = vlm_data.open("scenes", size=10)
    one, same, other = (vlm_data.contact_sheet(rows, seed=seed) for seed in (0, 0, 1))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert vlm_data.contact_sheet(rows, count=7).width == one.width
    assert vlm_data.contact_sheet(rows.select([0])).width == 220 + 2 * 14


def test_long_texts_and_broken_images_on_a_sheet(rows, tmp_path):
    (tmp_path / "long.csv").write_text(f'a.png,"{"word " * 500}"\nb.png,{"x" * 5000}\nbroken.png,漢字 ελληνικά 🙂\n')
    sheet = vlm_data.contact_sheet(vlm_data.open(tmp_path / "long.csv"))
    assert sheet.size == (3 * 234 + 14, 14 + 220 + 6 + 4 * 18 + 14)
    red = (np.asarray(sheet).astype(int) - (0xC0, 0x1C, 0x28)).any(-1) == 0
    assert red.sum() > 20
