"""What `test_other_device.py` runs on a device beside the CPU; each case raises what is wrong."""

import json
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import other_device
import pytest
import torch
from subjects import METHODS

import peft_methods as pm
import vlm_data
import vlm_models
from vlm_train.options.config import TrainConfig
from vlm_train.run import run

DEVICE, LONGEST = "gpu", 6
LIKE_OTHERS = ("rslora", "pfeiffer", "parallel")
METHODS = METHODS | {
    "lora with dropout": lambda s: pm.LoRA(rank=4, targets=s.linear, dropout=0.1),
    "pissa": lambda s: pm.LoRA(rank=4, targets=s.linear, initialization="pissa"),
    "grit that shrinks": lambda s: pm.GRIT(
        rank=8, targets=s.linear, rebalance_every=1, energy=0.5, patience=1, dropout=0.1
    ),
}


@cache
def load(name: str, device: str) -> vlm_models.VLM:
    return vlm_models.load(name, device=device, dtype="float32")


@cache
def rows() -> list[dict]:
    """Of four images, two or three of each."""
    return vlm_data.open("scenes", split="families", size=4).to_list()[::4]


@cache
def batches(name: str) -> tuple[vlm_models.Batch, vlm_models.Batch]:
    """To train on, and to answer."""
    vlm = load(name, "cpu")
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    return collate(rows()), collate.prompts(rows())


def it_refuses() -> None:
    ours, theirs = torch.ones(2, 3), torch.ones(2, 3, device=DEVICE)
    for wrong in (
        lambda: ours + theirs,
        lambda: ours.t() @ theirs,
        lambda: torch.cat([ours, theirs]),
        lambda: theirs.index_select(0, torch.tensor([1])),
        lambda: ours[torch.tensor([1], device=DEVICE)],
        lambda: theirs.masked_fill(ours > 0, 0.0),
        lambda: torch.nn.functional.embedding(torch.tensor([1]), theirs),
        lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
        lambda: theirs.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            wrong()
    assert (theirs * torch.tensor(2.0) + theirs[torch.tensor([1, 0])]).tolist() == [[3.0] * 3] * 2
    assert torch.equal(theirs.cpu(), ours)


def loss_and_gradients(name: str, plain: bool) -> None:
    found = []
    for device in ("cpu", DEVICE):
        vlm = load(name, device)
        vlm.requires_grad_(True).zero_grad()
        vlm.plain = plain
        loss, count = vlm(vlm.to_device(batches(name)[0]))
        (loss / count).backward()
        vlm.plain = False
        found.append({"loss": loss, **{n: p.grad for n, p in vlm.named_parameters() if p.grad is not None}})
        vlm.requires_grad_(False)
    of_cpu, of_device = found
    assert {one.device.type for one in of_device.values()} == {DEVICE}
    for key, one in of_cpu.items():
        torch.testing.assert_close(
            of_device[key].cpu(), one, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


def answers(name: str) -> None:
    for options in ({}, {"num_beams": 2}, {"temperature": 1.0, "top_p": 0.9, "seed": list(range(len(rows())))}):
        of_cpu, of_device = (
            [one.text for one in vlm.generate(vlm.to_device(batches(name)[1]), LONGEST, **options)]
            for vlm in (load(name, "cpu"), load(name, DEVICE))
        )
        assert of_device == of_cpu, options


def features_and_attention(name: str, folder: Path) -> None:
    vlm = load(name, DEVICE)
    batch = vlm.to_device(batches(name)[1])
    maps = vlm_models.attention_maps(vlm, batch, vlm.generate(batch, 2))
    assert {one.device.type for one in maps} == {DEVICE}
    images = {
        key: one for key, one in batches(name)[1].items() if key not in ("input_ids", "attention_mask", "image_index")
    }
    cache = vlm_models.FeatureCache(vlm, folder / f"features-{name}")
    count = len(vlm.encode_images(batch))
    keys = [f"{number:032x}" for number in range(count)]
    encoded, read = (cache.encode(keys, lambda places: images) for _ in range(2))
    for one, other in zip(encoded, read, strict=True):
        assert other["features"].device.type == DEVICE and torch.equal(one["features"], other["features"])


class _Subject:
    """As `METHODS` take it."""

    def __init__(self, name: str):
        self.vlm = vlm_models.load(name, device=DEVICE, dtype="float32")
        self.model, self.linear = self.vlm.model, self.vlm.targets("language")


def method(name: str, folder: Path) -> None:
    subject = _Subject("tiny-git")
    vlm = subject.vlm
    batch = vlm.to_device(vlm_data.collator(vlm.processor, vlm.family)(rows()[:4]))
    attachment = pm.attach(vlm.model, METHODS[name](subject))
    optimizer = torch.optim.AdamW(attachment.parameter_groups(1e-4))
    attachment.bind(optimizer)
    vlm.train()
    losses = []
    for _ in range(3):
        loss, count = vlm(batch)
        attachment.loss_terms(count)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    vlm.eval()
    assert min(losses[1:]) < losses[0]
    trained = vlm(batch)[0].item()
    attachment.load_state_dict({key: tensor.cpu().clone() for key, tensor in attachment.state_dict().items()})
    if not any(part.unmergeable for part in attachment.modules.values()):
        attachment.merge()
        assert vlm(batch)[0].item() == pytest.approx(trained, rel=1e-3)
    attachment.save(folder / name)
    attachment.detach()
    pm.load(vlm.model, folder / name)
    assert {one.device.type for one in vlm.parameters()} == {DEVICE}
    assert vlm.eval()(batch)[0].item() == pytest.approx(trained, rel=1e-3)


def run_and_resume(folder: Path) -> None:
    """Dropout is drawn anew in each step: a resumed run is the other one, bit for bit."""
    table = []
    for number, row in enumerate(rows()):
        vlm_data.decode(row["image"]).save(folder / f"{number}.png")
        question = row["prompt"] or "what is it?"
        table.append({"image": f"{number}.png", "prompt": question, "references": row["references"]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    options = {
        "model": "tiny-git",
        "data": str(folder / "rows.jsonl"),
        "device": DEVICE,
        "cache_dir": str(folder / "kept"),
    }
    options |= {"batch_size": 2, "dropout": 0.1, "max_steps": 4, "evaluate_every": 2, "checkpoint_every": 1}
    options |= {"allow_overlap": True}
    whole = run(TrainConfig(**options, out=str(folder / "whole")))
    halted = {**options, "out": str(folder / "halted")}
    step, left = torch.optim.AdamW.step, [2]

    def limited(*args, **kwargs):
        if not left[0]:
            raise torch.OutOfMemoryError("as if")
        left[0] -= 1
        return step(*args, **kwargs)

    torch.optim.AdamW.step = limited
    try:
        with pytest.raises(vlm_models.ModelError, match="out of memory"):
            run(TrainConfig(**halted))
    finally:
        torch.optim.AdamW.step = step
    run(TrainConfig(**halted), resume=True)
    file = Path("adapter", "adapter_model.safetensors")
    assert (whole / file).read_bytes() == (folder / "halted" / file).read_bytes()


CASES: dict[str, Callable[[Path], None]] = {"it refuses what CUDA refuses": lambda folder: it_refuses()}
for _name in vlm_models.TINY:
    CASES |= {
        f"{_name}, loss and gradients": lambda folder, name=_name: loss_and_gradients(name, plain=False),
        f"{_name}, the same without packing": lambda folder, name=_name: loss_and_gradients(name, plain=True),
        f"{_name}, answers": lambda folder, name=_name: answers(name),
        f"{_name}, features and attention": partial(features_and_attention, _name),
    }
CASES |= {one: partial(method, one) for one in METHODS if one not in LIKE_OTHERS}
CASES["vlm-train, and --resume"] = run_and_resume


def run_all(folder: Path) -> None:
    """Write tracebacks of the cases that fail to `failed.json`. It changes the process for good."""
    torch.set_num_threads(1)
    other_device.set_up()
    failed = {}
    for name, case in CASES.items():
        try:
            case(folder)
        except BaseException:  # also what pytest raises
            failed[name] = traceback.format_exc()
    (folder / "failed.json").write_text(json.dumps(failed))
