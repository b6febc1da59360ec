"""Shared by the tests that cross packages: rows of scenes, and the tiny models in float64."""

import functools

import pytest

import vlm_data
import vlm_models

NAMES = list(vlm_models.TINY)


@pytest.fixture(scope="session")
def scene_rows() -> list[dict]:
    """Rows of twelve held-out scenes: captions and questions of different lengths, several to an image."""
    return vlm_data.open("scenes", split="families", size=12).to_list()


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
