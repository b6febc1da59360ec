"""Training with features that are read from a cache: the same as with pixels, and only where it can be."""

import io

import pytest
import torch
from datasets import Dataset
from rich.console import Console

import peft_methods
import vlm_data
import vlm_models
from vlm_train.engine.loop import train
from vlm_train.engine.optimizers import make_optimizer
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.features import Features, encode_once
from vlm_train.rows.images import DistinctImages


class Job:
    """A tiny model with LoRA and rows of scenes, their images as files if a folder is given."""

    def __init__(self, name: str, folder=None, targets: str = "language"):
        torch.manual_seed(0)
        self.vlm = vlm_models.load(name, device="cpu")
        self.attachment = peft_methods.attach(
            self.vlm.model, peft_methods.LoRA(rank=4, targets=self.vlm.targets(targets))
        )
        self.collate = vlm_data.collator(self.vlm.processor, self.vlm.family)
        rows = vlm_data.open("scenes", split="families", size=12).to_list()
        if folder is not None:
            for row in rows:
                file = folder / f"{vlm_data.content_key(row['image'])}.png"
                file.write_bytes(row["image"]["bytes"])
                row["image"] = {"path": str(file), "bytes": None}
        self.rows = Dataset.from_list(rows)
        self.console = Console(file=io.StringIO(), width=200)

    def cache(self, folder, max_bytes: int = 2**30) -> vlm_models.FeatureCache:
        return vlm_models.FeatureCache(self.vlm, folder, max_bytes)

    def encode(self, cache, ahead: bool = True):
        return encode_once(cache, self.collate, self.rows, self.console, ahead)

    def losses(self, features) -> list[float]:
        config = TrainConfig(batch_size=8, accumulate=2, max_steps=4, learning_rate=1e-2)
        optimizer = make_optimizer(self.attachment.parameter_groups(config.peak_learning_rate), config)
        alone = Processes()
        batches = Batches(self.vlm, self.collate, self.rows, features, config, alone)
        return [step.loss for step in train(self.vlm, self.attachment, optimizer, batches, 4, config, alone)]

    @property
    def said(self) -> str:
        return self.console.file.getvalue()


@pytest.mark.parametrize("name", vlm_models.TINY)
def test_losses_are_those_of_training_with_pixels(name, tmp_path):
    plain = Job(name).losses(None)
    ahead, lazy = Job(name), Job(name, tmp_path)
    assert ahead.losses(ahead.encode(ahead.cache(tmp_path / "a"))) == pytest.approx(plain, rel=1e-4)
    assert lazy.losses(lazy.encode(lazy.cache(tmp_path / "b"), ahead=False)) == pytest.approx(plain, rel=1e-4)
    assert "12 images encoded once, 12 of them now" in ahead.said
    assert "12 images, each encoded when it is first shown" in lazy.said

    again = Job(name, tmp_path)  # files of the same content
    features = again.encode(again.cache(tmp_path / "a"))
    again.vlm._encode = None  # nothing is left to encode
    assert again.losses(features) == pytest.approx(plain, rel=1e-4)
    assert "12 images encoded once, 0 of them now" in again.said


def test_a_data_set_that_the_cache_cannot_hold_is_encoded_every_step(tmp_path):
    job = Job("tiny-git")
    assert job.encode(job.cache(tmp_path, max_bytes=100_000)) is None
    assert "images are encoded every step: their features take" in job.said and "--cache-size allows" in job.said


def test_a_trained_image_encoder_is_told(tmp_path):
    job = Job("tiny-git", targets="vision")
    assert job.encode(job.cache(tmp_path)) is None
    assert "images are encoded every step: the image encoder is trained (git.image_encoder" in job.said
    assert not list(tmp_path.iterdir())


def test_features_do_not_depend_on_who_decodes_their_images(tmp_path, monkeypatch):
    monkeypatch.setattr(vlm_models.features, "BATCH", 3)
    job = Job("tiny-qwen2-vl")
    images = DistinctImages(job.rows)
    found, asked = [], []
    for workers in (0, 2):
        cache = job.cache(tmp_path / str(workers))
        features = Features(cache, job.collate, workers)
        assert features.fill(images[:5], asked.append) == 5 and features.fill(images) == len(images) - 5
        assert features.fill(images) == 0
        monkeypatch.setattr(cache, "_encode", None)  # all are known
        found.append(features.of(images))
    assert len(asked) == 4 and asked[1] == asked[3] == 5
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
