"""Splits: disjoint by image content, complete, reproducible, and as near to the fraction as brute force gets."""

import itertools
import random

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlm_data
from vlm_data import DataError, ImageError
from vlm_data.splitting import _nearest_sum


def rows_of(contents, paths=None):
    """One row for each content, as bytes or by path."""
    images = [
        {"path": None, "bytes": content} if paths is None else {"path": paths[index], "bytes": None}
        for index, content in enumerate(contents)
    ]
    numbers = [str(index) for index in range(len(images))]
    columns = {"id": numbers, "image": images, "prompt": [None] * len(images)}
    columns |= {"references": [["x"]] * len(images), "source": numbers}
    return datasets.Dataset.from_dict(columns, features=vlm_data.FEATURES)


def nearest_by_brute_force(sizes, wanted):
    subsets = itertools.chain.from_iterable(itertools.combinations(sizes, count) for count in range(1, len(sizes)))
    return min(abs(sum(subset) - wanted) for subset in subsets)


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.integers(0, 8), min_size=2, max_size=40).filter(lambda contents: len(set(contents)) > 1),
    val_fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_disjoint_complete_deterministic_and_nearest(contents, val_fraction, seed):
    rows = rows_of([f"image {content}".encode() for content in contents])
    train, val = vlm_data.split(rows, val_fraction, seed)
    assert len(train) > 0 and len(val) > 0
    assert not {image["bytes"] for image in train["image"]} & {image["bytes"] for image in val["image"]}
    train_ids, val_ids = [int(id) for id in train["id"]], [int(id) for id in val["id"]]
    assert sorted(train_ids + val_ids) == list(range(len(contents)))
    assert train_ids == sorted(train_ids) and val_ids == sorted(val_ids)
    again = vlm_data.split(rows, val_fraction, seed)
    assert (again[0]["id"][:], again[1]["id"][:]) == (train["id"][:], val["id"][:])
    wanted = val_fraction * len(contents)
    sizes = [contents.count(content) for content in set(contents)]
    assert abs(len(val) - wanted) == pytest.approx(nearest_by_brute_force(sizes, wanted))


def test_the_order_of_rows_does_not_matter_but_the_seed_does():
    contents = [f"image {index % 30}".encode() for index in range(100)]
    shuffled = random.Random(0).sample(contents, 100)

    def val_images(contents, seed):
        return {image["bytes"] for image in vlm_data.split(rows_of(contents), seed=seed)[1]["image"]}

    assert val_images(contents, 1) == val_images(shuffled, 1)
    assert val_images(contents, 1) != val_images(contents, 2)


def test_one_picture_under_two_names_is_on_one_side(tmp_path):
    paths = []
    for index in range(20):
        for name in (f"{index}.png", f"copy of {index}.png"):
            (tmp_path / name).write_bytes(b"picture %d" % index)
            paths.append(str(tmp_path / name))
    train, val = vlm_data.split(rows_of(paths, paths), 0.3)
    train_pictures, val_pictures = ({vlm_data.content_key(image) for image in side["image"]} for side in (train, val))
    assert len(val) == 12 and len(val_pictures) == 6
    assert train_pictures.isdisjoint(val_pictures)


def test_each_image_is_about_as_likely_to_be_chosen():
    """300 seeds, 10 images, 3 chosen: 90 times each; 5 standard deviations of the binomial are 40."""
    contents = [str(index).encode() for index in range(10)]
    rows = rows_of(contents)
    chosen = [image["bytes"] for seed in range(300) for image in vlm_data.split(rows, 0.3, seed)[1]["image"]]
    assert all(abs(chosen.count(content) - 90) < 40 for content in contents)


@pytest.mark.parametrize("wanted", [1, 30_000, 12_345, 99_999.4])
def test_large_sums_are_met(wanted):
    rng = random.Random(0)
    sizes = [rng.choice([1, 2, 5, 5, 5, 40]) for _ in range(15_000)]
    positions = _nearest_sum(sizes, wanted)
    assert len(set(positions)) == len(positions)
    assert sum(sizes[position] for position in positions) == round(wanted)


def test_one_image_with_nearly_all_rows():
    contents = [b"large"] * 99 + [b"small"]
    train, val = vlm_data.split(rows_of(contents), 0.5)
    assert {len(train), len(val)} == {1, 99}


@pytest.mark.parametrize(
    ("sizes", "val_fraction"), [([10, 10], 0.05), ([3, 3, 4], 0.3), ([5, 7, 9], 0.2), ([6, 9], 0.99)]
)
def test_groups_larger_than_what_is_wanted(sizes, val_fraction):
    contents = [b"image %d" % index for index, size in enumerate(sizes) for _ in range(size)]
    wanted = val_fraction * len(contents)
    for seed in range(5):
        _, val = vlm_data.split(rows_of(contents), val_fraction, seed)
        assert abs(len(val) - wanted) == pytest.approx(nearest_by_brute_force(sizes, wanted))


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside(val_fraction):
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        vlm_data.split(rows_of([b"a", b"b"]), val_fraction)


def test_too_few_images_and_unreadable_ones():
    with pytest.raises(DataError, match=r"1 distinct image\(s\): two are needed"):
        vlm_data.split(rows_of([b"a", b"a"]))
    with pytest.raises(ImageError, match=r"/none/x.png cannot be read"):
        vlm_data.split(rows_of([b"a", b"b"], ["/none/x.png", "/none/x.png"]))
