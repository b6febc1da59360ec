"""Shared by the tests that cross packages: rows of scenes, and the tiny models in float64."""

import csv
import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import vlm_data
import vlm_models

NAMES = list(vlm_models.TINY)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory) -> None:
    """Commands keep image features in a folder of these tests, not in the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def scene_rows() -> list[dict]:
    """Rows of twelve held-out scenes: captions and questions of different lengths, several to an image."""
    return vlm_data.open("scenes", split="families", size=12).to_list()


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory) -> Callable[[str, int], Path]:
    """Makes what a user has: `photos/0.png`, ..., `captions.csv` and `questions.csv`, from scenes of a split."""

    def make(split: str, size: int) -> Path:
        folder = tmp_path_factory.mktemp(split)
        (folder / "photos").mkdir()
        captions, questions = [["image_name", "caption"]], [["image_name", "question", "answer"]]
        for row in vlm_data.open("scenes", split=split, size=size):
            photo = f"{row['id'].split('-')[3]}.png"
            vlm_data.decode(row["image"]).save(folder / "photos" / photo)
            if row["prompt"] is None:
                captions.append([photo, row["references"][0]])
            else:
                questions.append([photo, row["prompt"], row["references"][0]])
        for table, rows in (("captions", captions), ("questions", questions)):
            with (folder / f"{table}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
        return folder

    return make


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@functools.cache
def load(name: str, dtype: str) -> vlm_models.VLM:
    return vlm_models.load(name, device="cpu", dtype=dtype)


@pytest.fixture
def vlm(name: str) -> vlm_models.VLM:
    """A tiny model in float64, all parameters trainable, no gradients."""
    vlm = load(name, "float64")
    vlm.requires_grad_(True)
    vlm.zero_grad()
    return vlm.eval()


@pytest.fixture
def collate(vlm: vlm_models.VLM) -> vlm_data.Collator:
    return vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
