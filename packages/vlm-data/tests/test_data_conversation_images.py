"""Rows of several images: all of them are verified, and none is on both sides of a split."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

import vlm_data


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "bad.png").write_bytes(b"<html>")
    return tmp_path


def conversations(folder, *shown):
    """A file of conversations about the images of these names."""
    records = [
        {
            "images": list(names),
            "messages": [
                {"role": "user", "content": "<image>" * len(names) + " what?"},
                {"role": "assistant", "content": "that"},
            ],
        }
        for names in shown
    ]
    (folder / "talk.json").write_text(json.dumps(records))
    return vlm_data.open(folder / "talk.json")


def test_every_image_is_verified(folder):
    rows = conversations(folder, ["0.png", "1.png"], ["1.png", "bad.png"], ["2.png"])
    rejected = []
    good = vlm_data.verify(rows, rejected)
    keys = [vlm_data.pixel_key(vlm_data.decode(str(folder / f"{n}.png"))) for n in range(3)]
    assert good["pixels"][:] == [f"{keys[0]} {keys[1]}", keys[2]]
    assert [record.source for record in rejected] == [f"{folder}/talk.json[1]"]
    assert "bad.png is HTML" in rejected[0].reason


def test_every_image_is_described(folder):
    rows = conversations(folder, ["0.png", "1.png"], ["1.png", "bad.png", "0.png"], ["1.png"])
    told = vlm_data.describe(rows)
    assert (told.rows, told.pictures, told.images, told.turns) == (3, 2, {"1": 1, "2": 1, "3-4": 1}, {"2": 3})
    assert len(told.broken) == 1 and "bad.png" in told.broken[0]
    assert "images of a conversation" in str(told) and told.repeated == 0


@pytest.mark.parametrize("stratify", [False, True])
def test_pictures_that_are_shown_together_stay_together(folder, stratify):
    chains = [["0.png", "1.png"], ["1.png", "2.png"], ["3.png", "2.png"], ["9.png"], ["9.png", "8.png"]]
    rest = [[f"{n}.png"] for n in range(10, 40)]
    rows = vlm_data.verify(conversations(folder, *chains, *rest), None)
    for seed in range(8):
        train, val = vlm_data.split(rows, val_fraction=0.4, seed=seed, stratify=stratify)
        sides = [{key for keys in part["pixels"] for key in keys.split()} for part in (train, val)]
        assert not sides[0] & sides[1] and len(train) + len(val) == len(rows) and len(val)
        assert vlm_data.overlap(train, val) == []
    both = [rows.select([number]) for number in (0, 1)]
    assert vlm_data.overlap(*both) == [(rows["source"][0], rows["source"][1])]


def test_the_split_does_not_depend_on_the_order_of_rows(folder):
    shown = [[f"{n}.png", f"{n + 1}.png"] for n in range(0, 40, 2)]
    parts = set()
    for ordered in itertools.islice(itertools.permutations(shown), 0, 5000, 1000):
        _, val = vlm_data.split(conversations(folder, *ordered), val_fraction=0.3)
        parts.add(frozenset(image["path"] for images in val["images"] for image in images))
    assert len(parts) == 1
