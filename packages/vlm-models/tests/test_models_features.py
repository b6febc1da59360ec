"""The cache of image features: what it gives is what the encoder gives, whatever happens to its files."""

import copy
import hashlib
import multiprocessing
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vlm_models
from vlm_models import FeatureCache, ModelError
from vlm_models.features import default_folder, fingerprint
from vlm_models.tensor_store import PARTIAL, SUFFIX

KEYS = [hashlib.sha256(bytes([index])).hexdigest() for index in range(12)]


class Images:
    """Drawn noise, one for each key, and what was asked for: the oracle encodes each with the plain path, alone."""

    def __init__(self, vlm: vlm_models.VLM):
        self.vlm, self.asked = vlm, []
        if vlm.family == "chat":  # images of different sizes
            vlm.processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}

    def batch(self, numbers: list[int]) -> dict[str, Tensor]:
        pictures = []
        for number in numbers:
            shape = (32 + 16 * (number % 3), 48, 3)
            pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
            pictures.append(Image.fromarray(pixels))
        batch = self.vlm.processor.image_processor(images=pictures, return_tensors="pt")
        return {name: value.to(self.vlm.model.dtype) if "pixel" in name else value for name, value in batch.items()}

    def of(self, *numbers: int):
        """`inputs` for a list of these images."""

        def inputs(places: list[int]) -> dict[str, Tensor]:
            self.asked.append([numbers[place] for place in places])
            return self.batch(self.asked[-1])

        return inputs

    def features(self, number: int) -> Tensor:
        return self.vlm.encode_images(self.batch([number]))[0]


@pytest.fixture(params=vlm_models.TINY)
def vlm(request) -> vlm_models.VLM:
    return vlm_models.load(request.param, device="cpu").requires_grad_(False)


@pytest.fixture
def git() -> vlm_models.VLM:
    return vlm_models.load("tiny-git", device="cpu").requires_grad_(False)


def keys(*numbers: int) -> list[str]:
    return [KEYS[number] for number in numbers]


def files(folder, suffix: str = SUFFIX) -> list:
    return sorted(folder.rglob(f"*{suffix}"))


# ---- what it gives


def test_features_are_the_encoders_and_each_image_is_asked_for_once(vlm, tmp_path):
    images = Images(vlm)
    cache = FeatureCache(vlm, tmp_path)
    first = cache.encode(keys(0, 1, 0), images.of(0, 1, 0))
    assert images.asked == [[0, 1]]
    second = cache.encode(keys(2, 1, 0, 2), images.of(2, 1, 0, 2))
    assert images.asked[1:] == [[2]]
    for entries, numbers in ((first, (0, 1, 0)), (second, (2, 1, 0, 2))):
        for entry, number in zip(entries, numbers, strict=True):
            torch.testing.assert_close(entry["features"], images.features(number), rtol=1e-5, atol=1e-5)
            others = {name: value for name, value in images.batch([number]).items() if name != "pixel_values"}
            assert entry.keys() - {"features"} == others.keys()
            assert all(torch.equal(entry[name], value[0]) for name, value in others.items())
    sizes = {len(entry["features"]) for entry in second}
    assert len(sizes) == (3 if vlm.family == "chat" else 1)

    another = FeatureCache(vlm, tmp_path).encode(keys(2, 1, 0), images.of(2, 1, 0))  # as another run finds them
    assert len(images.asked) == 2
    assert all(torch.equal(one["features"], same["features"]) for one, same in zip(another, second[:3], strict=True))


def test_a_training_step_with_cached_features_has_the_loss_of_the_plain_path(vlm, tmp_path):
    images = Images(vlm)
    entry = FeatureCache(vlm, tmp_path).encode(keys(4), images.of(4))[0]
    read = FeatureCache(vlm, tmp_path).encode(keys(4), images.of(4))[0]
    tokens = torch.randint(10, 200, (1, 9))
    extra = {}
    if vlm.family in ("blip2", "chat"):
        tokens = torch.cat([torch.full((1, len(read["features"])), vlm.model.config.image_token_id), tokens], 1)
    if vlm.family == "chat":
        extra = {"image_grid_thw": read["image_grid_thw"][None]}
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens, **extra}
    batch["image_index"] = torch.tensor([0])
    plain = vlm({**batch, **images.batch([4])})
    for one in (entry, read):
        torch.testing.assert_close(vlm({**batch, "features": [one["features"]]}), plain)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_dtype_is_the_models(dtype, tmp_path):
    vlm = vlm_models.load("tiny-qwen2-vl", device="cpu", dtype=dtype).requires_grad_(False)
    images = Images(vlm)
    for _ in range(2):
        entry = FeatureCache(vlm, tmp_path).encode(keys(0), images.of(0))[0]
        assert torch.equal(entry["features"], images.features(0)) and entry["features"].dtype == vlm.model.dtype
    assert images.asked == [[0]]


def test_what_is_read_can_be_written_to_without_changing_the_file(git, tmp_path):
    images = Images(git)
    cache = FeatureCache(git, tmp_path)
    cache.encode(keys(0), images.of(0))
    cache.encode(keys(0), images.of(0))[0]["features"].zero_()
    assert cache.encode(keys(0), images.of(0))[0]["features"].ne(0).any() and images.asked == [[0]]


def test_dropout_never_gets_into_what_is_kept(tmp_path):
    vlm = vlm_models.load("tiny-blip2", device="cpu").requires_grad_(False)
    for module in vlm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    images = Images(vlm)
    expected = images.features(0)
    vlm.train()
    vlm.model.language_model.eval()
    modes = [module.training for module in vlm.modules()]
    assert not torch.equal(images.features(0), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entry = FeatureCache(vlm, tmp_path).encode(keys(0), images.of(0))[0]
    assert torch.equal(entry["features"], expected) and not entry["features"].requires_grad
    assert [module.training for module in vlm.modules()] == modes


# ---- what it depends on


def test_fingerprint_is_of_the_image_encoder_and_the_preprocessing(vlm):
    same = vlm_models.load(vlm.name, device="cpu")
    start = fingerprint(vlm)
    assert start == fingerprint(vlm) == fingerprint(same)

    with torch.no_grad():
        vlm.head.weight[0, 0] += 1  # language
        vlm.model.get_parameter(
            next(n for n, _ in vlm.model.named_parameters() if n.startswith(vlm.language_parts))
        ).add_(1)
    assert fingerprint(vlm) == start
    changed = set()
    names = [n for n, _ in vlm.model.named_parameters() if n.startswith(vlm.vision_parts)]
    for name in (names[0], names[-1]):
        with torch.no_grad():
            flat = vlm.model.get_parameter(name).view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))  # a last bit
        changed.add(fingerprint(vlm))
    same.processor.image_processor.image_mean = [0.5, 0.5, 0.4]
    changed.add(fingerprint(copy.copy(same)))
    changed.add(fingerprint(vlm_models.load(vlm.name, device="cpu", dtype="bfloat16")))
    assert len(changed | {start}) == 5


def test_two_folders_of_one_model_share_features(git, tmp_path):
    git.save(tmp_path / "copy")
    assert fingerprint(vlm_models.load(str(tmp_path / "copy"), device="cpu")) == fingerprint(git)


def test_off_by_itself_if_the_image_encoder_is_trained(vlm, tmp_path):
    name = next(n for n, _ in vlm.model.named_parameters() if n.startswith(vlm.vision_parts))
    vlm.model.get_parameter(name).requires_grad_(True)
    images = Images(vlm)
    cache = FeatureCache(vlm, tmp_path / "none")
    assert cache.off == f"images are encoded every step: the image encoder is trained ({name})"
    for _ in range(2):
        (entry,) = cache.encode(keys(0), images.of(0))
        assert entry["features"].requires_grad
    assert cache.fill(keys(0, 1), images.of(0, 1)) == 0
    assert images.asked == [[0], [0]] and not (tmp_path / "none").exists()


@pytest.mark.parametrize("change", ["trained", "changed"])
def test_nothing_is_kept_of_an_encoder_that_changed_meanwhile(change, git, tmp_path):
    cache, images = FeatureCache(git, tmp_path), Images(git)
    cache.encode(keys(0), images.of(0))
    weight = git.model.get_parameter("git.visual_projection.visual_projection.0.weight")
    if change == "trained":
        weight.requires_grad_(True)
    else:
        weight.add_(0.1)
    with pytest.raises(ModelError, match="image encoder has changed since its feature cache was opened"):
        cache.encode(keys(1), images.of(1))
    assert len(files(tmp_path)) == 1


# ---- ahead, and how much


def test_fill_encodes_what_is_missing_and_tells_how_far_it_is(git, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_models.features.BATCH", 4)
    cache, images, heard = FeatureCache(git, tmp_path), Images(git), []
    cache.encode(keys(3), images.of(3))
    numbers = [*range(10), 0, 5]
    assert cache.fill(keys(*numbers), images.of(*numbers), heard.append) == 9
    assert sorted(heard) == heard and heard[-1] == 10 and len(heard) == 3
    assert sorted(number for asked in images.asked for number in asked) == [*range(10)]
    cache.encode(keys(*numbers), images.of(*numbers))
    assert cache.fill(keys(*numbers), images.of(*numbers), heard.append) == 0 and len(images.asked) == 4


def test_predicted_bytes_are_those_on_disk(vlm, tmp_path):
    cache, images = FeatureCache(vlm, tmp_path), Images(vlm)
    cache.fill(KEYS, images.of(*range(12)))
    sample = cache.encode(keys(0, 1, 2), images.of(0, 1, 2))
    on_disk = sum(file.stat().st_size for file in files(tmp_path))
    assert cache.predicted_bytes(sample, 12) == pytest.approx(on_disk, rel=0.02)


# ---- damage


def test_a_damaged_entry_is_computed_again_also_by_a_process_that_read_it_whole(git, tmp_path):
    cache, images = FeatureCache(git, tmp_path), Images(git)
    for _ in range(2):
        cache.encode(keys(0), images.of(0))
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    entry = cache.encode(keys(0), images.of(0))[0]
    assert images.asked == [[0], [0]] and torch.equal(entry["features"], images.features(0))
    assert torch.equal(cache.encode(keys(0), images.of(0))[0]["features"], entry["features"]) and len(images.asked) == 2


def test_a_full_disk_is_told_once_and_the_run_goes_on(git, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    cache, images = FeatureCache(git, tmp_path), Images(git)
    with pytest.warns(UserWarning, match="No space left on device; no more is kept from here on") as told:
        for _ in range(2):
            entries = cache.encode(keys(0, 1), images.of(0, 1))
    assert len(told) == 1 and not files(tmp_path) and not files(tmp_path, PARTIAL)
    torch.testing.assert_close(entries[1]["features"], images.features(1))


def test_a_folder_that_cannot_be_made_and_a_key_that_is_none(git, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"file/cache: Not a directory; choose another folder"):
        FeatureCache(git, tmp_path / "file" / "cache")
    with pytest.raises(ModelError, match="'../../x' is no hexadecimal digest"):
        FeatureCache(git, tmp_path).encode(["../../x"], Images(git).of(0))


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vlm-models" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "vlm-models" / "features"


# ---- several processes

FORK = multiprocessing.get_context("fork")  # what they need is there at once


def use(vlm: vlm_models.VLM, folder, seed: int, max_bytes: int, failed) -> None:
    """Encode images in random order, one at a time, and compare."""
    torch.set_num_threads(1)
    images, order = Images(vlm), random.Random(seed)
    expected = [images.features(number) for number in range(12)]
    cache = FeatureCache(vlm, folder, max_bytes)
    for _ in range(60):
        number = order.randrange(12)
        (entry,) = cache.encode(keys(number), images.of(number))
        if not torch.equal(entry["features"], expected[number]):
            failed.set()


@pytest.mark.parametrize("entries", [12, 5])
def test_processes_share_a_folder(entries, git, tmp_path):
    images = Images(git)
    FeatureCache(git, tmp_path / "one").encode(keys(0), images.of(0))
    size = files(tmp_path / "one")[0].stat().st_size
    folder, failed = tmp_path / "all", FORK.Event()
    # room for what all three may think is free
    children = [FORK.Process(target=use, args=(git, folder, seed, (entries + 3) * size, failed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0] and not failed.is_set()
    assert not files(folder, PARTIAL)
    assert len(files(folder)) == 12 if entries == 12 else 3 <= len(files(folder)) <= entries + 6
