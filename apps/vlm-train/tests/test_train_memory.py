"""Memory that does not suffice: training says what would fit and keeps what it has, evaluation takes fewer rows."""

import json
import weakref
from types import SimpleNamespace

import pytest
import torch

import vlm_models
from vlm_train.engine import batch_size
from vlm_train.options.config import TrainConfig
from vlm_train.run import run

OPTIONS = {"model": "tiny-git", "data": "scenes", "max_steps": 3, "val_rows": 8, "device": "cpu"}


@pytest.fixture
def fitting(monkeypatch):
    """Let a number of rows fit from a step on, in training and generating."""

    def limit(rows: int, from_call: int = 0) -> None:
        calls = []

        def refusing(plain):
            def checked(vlm, batch, *args, **options):
                calls.append(len(batch["input_ids"]))
                if len(calls) > from_call and calls[-1] > rows:
                    torch.empty(2**60, dtype=torch.uint8)  # raises what a CPU's allocator does
                return plain(vlm, batch, *args, **options)

            return checked

        monkeypatch.setattr(vlm_models.VLM, "forward", refusing(vlm_models.VLM.forward))
        monkeypatch.setattr(vlm_models.VLM, "generate", refusing(vlm_models.VLM.generate))

    return limit


def test_training_says_which_batch_fits_and_keeps_its_adapter(fitting, tmp_path):
    fitting(5, from_call=4)  # the evaluation before (texts, loss), and two steps, pass
    options = {**OPTIONS, "batch_size": 24, "accumulate": 1, "out": str(tmp_path / "run")}
    with pytest.raises(vlm_models.ModelError) as told:
        run(TrainConfig(**options))
    assert str(told.value) == (
        "out of memory on cpu in step 3 with 24 rows in a forward pass; 3 fit: use --batch-size 3 --accumulate 8"
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted after step 2 of 3"
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_where_not_one_row_fits_it_says_so(fitting, tmp_path):
    fitting(0, from_call=2)
    with pytest.raises(
        vlm_models.ModelError, match="one alone does not fit: use --gradient-checkpointing, --quantization nf4"
    ):
        run(TrainConfig(**OPTIONS, batch_size=4, out=str(tmp_path / "run")))


def test_sizes_are_tried_without_the_graph_that_did_not_fit(monkeypatch, tmp_path):
    """Memory that ends in the backward pass, which holds what the forward pass has kept."""
    plain, failed, held = vlm_models.VLM.forward, [], []

    class Exhausted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            raise torch.OutOfMemoryError("tried to allocate")

    def forward(vlm, batch):
        loss, count = plain(vlm, batch)
        held.extend(one for one in failed if one() is not None)
        if loss.requires_grad and len(batch["input_ids"]) > 3:
            loss = Exhausted.apply(loss)
            failed.append(weakref.ref(loss))
        return loss, count

    monkeypatch.setattr(vlm_models.VLM, "forward", forward)
    with pytest.raises(vlm_models.ModelError, match="with 8 rows in a forward pass; 2 fit: use --batch-size 2"):
        run(TrainConfig(**OPTIONS, batch_size=8, out=str(tmp_path / "run")))
    assert len(failed) == 2 and not held


def test_what_fits_on_a_gpu_is_found_by_trying(monkeypatch):
    vlm, attached = SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(trainable=10)
    tried = []

    def fits(vlm, batch):
        tried.append(len(batch))
        return len(batch) <= 5

    monkeypatch.setattr(batch_size, "fits", fits)
    assert batch_size._tried(vlm, attached, list, [{}] * 16, [1, 2, 4, 8, 16]) == 4 and tried == [1, 2, 4, 8]

    def full(*_, **options):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(torch, "empty", full)  # not even what the optimizer takes
    assert batch_size._tried(vlm, attached, list, [{}] * 16, [1, 2, 4, 8, 16]) == 1 and len(tried) == 4


def test_evaluation_takes_fewer_rows_at_a_time(fitting, monkeypatch, tmp_path):
    plain = run(TrainConfig(**OPTIONS, batch_size=3, out=str(tmp_path / "plain")))
    held, to_device = [], vlm_models.VLM.to_device

    def noted(vlm, batch):
        moved = to_device(vlm, batch)
        moved["input_ids"] = moved["input_ids"].clone()  # as if it was another device
        held.append((len(moved["input_ids"]), weakref.ref(moved["input_ids"])))
        assert all(one() is None for rows, one in held[:-1] if rows > 3), "what did not fit is held"
        return moved

    monkeypatch.setattr(vlm_models.VLM, "to_device", noted)
    fitting(3)
    halved = run(TrainConfig(**OPTIONS, batch_size=3, out=str(tmp_path / "halved")))
    assert (plain / "predictions.jsonl").read_text() == (halved / "predictions.jsonl").read_text()


def test_an_optimizer_that_does_not_fit_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(vlm_models.ModelError, match="^out of memory on cpu in the optimizer, in step 1; train fewer"):
        run(TrainConfig(**OPTIONS, out=str(tmp_path / "run")))


def test_memory_that_does_not_suffice_elsewhere_is_one_line(monkeypatch, tmp_path):
    def refused(*_):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(vlm_models.FeatureCache, "fill", refused)
    with pytest.raises(vlm_models.ModelError, match="^out of memory outside of training's steps.*--quantization nf4"):
        run(TrainConfig(**OPTIONS, out=str(tmp_path / "run")))
