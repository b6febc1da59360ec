"""Splits: disjoint by picture, complete, stable when rows are added, near the fraction; overlaps, look-alikes."""

import io
import random
from functools import cache

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vlm_data
from vlm_data import DataError, ImageError
from vlm_data.looking_alike import difference_hash


@cache
def png(content, format="PNG", **options):
    """A picture of its own for each content."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(content).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def rows_of(contents, paths=None, references=None):
    """One row for each content, as bytes or by path."""
    images = [
        {"path": None, "bytes": png(content)} if paths is None else {"path": paths[index], "bytes": None}
        for index, content in enumerate(contents)
    ]
    numbers = [str(index) for index in range(len(images))]
    columns = {"id": numbers, "image": images, "prompt": [None] * len(images)}
    columns |= {"references": references or [["x"]] * len(images), "source": numbers}
    return datasets.Dataset.from_dict(columns, features=vlm_data.FEATURES)


def pictures(rows):
    return {image["bytes"] for image in rows["image"]}


CONTENTS = st.lists(st.integers(0, 8), min_size=2, max_size=40).filter(lambda contents: len(set(contents)) > 1)


@settings(max_examples=60, deadline=None)
@given(contents=CONTENTS, val_fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32), stratify=st.booleans())
def test_disjoint_complete_and_deterministic(contents, val_fraction, seed, stratify):
    rows = rows_of(contents, references=[[str(content % 3)] for content in contents])
    train, val = vlm_data.split(rows, val_fraction, seed, stratify=stratify)
    assert len(train) > 0 and len(val) > 0
    assert not pictures(train) & pictures(val)
    train_ids, val_ids = [int(id) for id in train["id"]], [int(id) for id in val["id"]]
    assert sorted(train_ids + val_ids) == list(range(len(contents)))
    assert train_ids == sorted(train_ids) and val_ids == sorted(val_ids)
    again = vlm_data.split(vlm_data.verify(rows, None), val_fraction, seed, stratify=stratify)
    assert (again[0]["id"][:], again[1]["id"][:]) == (train["id"][:], val["id"][:])


def test_the_order_of_rows_does_not_matter_but_the_seed_does():
    contents = [index % 30 for index in range(100)]
    shuffled = random.Random(0).sample(contents, 100)
    val_of = {seed: pictures(vlm_data.split(rows_of(contents), seed=seed)[1]) for seed in (1, 2)}
    assert val_of[1] == pictures(vlm_data.split(rows_of(shuffled), seed=1)[1]) != val_of[2]


def test_pictures_stay_where_they_are_when_rows_are_added():
    before = [pictures(side) for side in vlm_data.split(rows_of(range(100)), 0.3)]
    after = [pictures(side) for side in vlm_data.split(rows_of([*range(500, 600), *range(100), *range(200, 300)]), 0.3)]
    assert before[0] <= after[0] and before[1] <= after[1]


def test_one_picture_under_two_names_and_in_two_formats_is_on_one_side(tmp_path):
    paths = []
    for index in range(20):
        for name, format in (("{}.png", "PNG"), ("copy of {}.png", "PNG"), ("{}.bmp", "BMP"), ("{}.webp", "WEBP")):
            path = tmp_path / name.format(index)
            path.write_bytes(png(index, format, **({"lossless": True} if format == "WEBP" else {})))
            paths.append(str(path))
    train, val = vlm_data.split(rows_of(paths, paths), 0.3)
    keys = [{vlm_data.pixel_key(vlm_data.decode(image)) for image in side["image"]} for side in (train, val)]
    assert keys[0].isdisjoint(keys[1]) and len(keys[0] | keys[1]) == 20
    assert len(train) == 4 * len(keys[0]) and len(val) == 4 * len(keys[1])


def test_the_size_is_that_of_a_draw():
    """2,000 pictures, 20 %: 400 are expected, the binomial's standard deviation is 17.9; and each seed draws anew."""
    sizes = [len(vlm_data.split(vlm_data.verify(rows_of(range(2000)), None), 0.2, seed)[1]) for seed in range(3)]
    assert all(abs(size - 400) < 5 * 17.9 for size in sizes)


def test_each_image_is_about_as_likely_to_be_chosen():
    """300 seeds, 10 images, 0.3: 90 times each; 5 standard deviations of the binomial are 40."""
    rows = vlm_data.verify(rows_of(range(10)), None)
    chosen = [image["bytes"] for seed in range(300) for image in vlm_data.split(rows, 0.3, seed)[1]["image"]]
    assert all(abs(chosen.count(png(content)) - 90) < 40 for content in range(10))


@pytest.mark.parametrize("seed", range(5))
def test_stratified_parts_have_their_share_of_every_answer(seed):
    answers = ["yes"] * 50 + ["no"] * 31 + ["two"] * 12 + ["rare"] * 4 + ["once"]
    contents = list(range(len(answers)))
    rows = rows_of([*contents, *contents], references=[[answer] for answer in answers] * 2)
    _, val = vlm_data.split(rows, 0.25, seed, stratify=True)
    in_val = [references[0] for references in val["references"]]
    assert abs(len(in_val) / 2 - 0.25 * len(answers)) <= 1
    for answer in set(answers):
        assert abs(in_val.count(answer) / 2 - 0.25 * answers.count(answer)) < 2  # systematic: one, and one for the ends


def test_the_stratum_of_a_picture_is_its_most_frequent_answer_over_its_rows():
    """Each picture has one row of its kind's answer and, listed first, one of its own: 20 of 100 of each kind."""
    contents = [content for content in range(200) for _ in range(2)]
    references = [
        answers
        for content in range(200)
        for answers in (
            [f"only {content}", "even" if content % 2 == 0 else "odd"],
            ["even" if content % 2 == 0 else "odd"],
        )
    ]
    _, val = vlm_data.split(rows_of(contents, references=references), 0.2, stratify=True)
    texts = [text for references in val["references"] for text in references]
    assert abs(texts.count("even") / 2 - 20) < 2 and abs(texts.count("odd") / 2 - 20) < 2


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside(val_fraction):
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        vlm_data.split(rows_of([0, 1]), val_fraction)


def test_too_few_images_and_unreadable_ones():
    with pytest.raises(DataError, match=r"1 distinct image\(s\): two are needed"):
        vlm_data.split(rows_of([0, 0]))
    with pytest.raises(ImageError, match=r"/none/x.png cannot be read"):
        vlm_data.split(rows_of([0, 1], ["/none/x.png", "/none/x.png"]))


def test_overlap_names_each_shared_picture_once(tmp_path):
    (tmp_path / "x.bmp").write_bytes(png(5, "BMP"))
    train = rows_of([1, 2, 2, 5, 3])
    assert vlm_data.overlap(train, rows_of([7, 8])) == []
    assert vlm_data.overlap(train, rows_of([7, 3, 2, 2])) == [("4", "1"), ("1", "2")]
    assert vlm_data.overlap(train, rows_of([0], [str(tmp_path / "x.bmp")])) == [("3", "0")]
    assert vlm_data.overlap(*vlm_data.split(rows_of([*range(30), *range(30)]))) == []


def test_near_duplicates_are_found_and_equal_or_recoloured_pictures_are_not(tmp_path):
    def smooth(seed):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)

    scenes = [smooth(seed) for seed in range(12)]
    saved = [(f"{number}.png", scene) for number, scene in enumerate(scenes)]
    saved += [("scaled.png", scenes[3].resize((64, 64))), ("again.jpg", scenes[5]), ("copy of 7.png", scenes[7])]
    saved += [("flat.png", Image.new("RGB", (9, 9), "red")), ("flat too.png", Image.new("RGB", (9, 9), "blue"))]
    saved += [("other colours.png", Image.merge("RGB", [scenes[9].convert("L")] * 3))]  # the hash is of grey
    for name, picture in saved:
        picture.save(tmp_path / name, **({"quality": 50} if name.endswith("jpg") else {}))
    rows = vlm_data.open(tmp_path)
    found = {
        frozenset((one.rsplit("/", 1)[1], other.rsplit("/", 1)[1])) for one, other, _ in vlm_data.near_duplicates(rows)
    }
    assert found == {frozenset(("3.png", "scaled.png")), frozenset(("5.png", "again.jpg"))}


def test_the_difference_hash_by_its_definition():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9), dtype=np.uint8))  # is not resized
    bits = [picture.getpixel((x, y)) > picture.getpixel((x + 1, y)) for y in range(8) for x in range(8)]
    assert difference_hash(picture) == int("".join(str(int(bit)) for bit in bits), 2)
