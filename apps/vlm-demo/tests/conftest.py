"""Runs as vlm-train leaves them, made without it, and pictures."""

import json

import pytest
import torch
from PIL import Image, ImageDraw

import peft_methods as pm
import vlm_models


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "star.png"
    image = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(image).ellipse((20, 10, 50, 40), "green")
    image.save(file)
    return file


@pytest.fixture(scope="session")
def make_run(tmp_path_factory, picture):
    """Makes a run's folder `name` for tiny-git with this method; `strength` is how much it changes the model."""

    def make(name: str, method: pm.Method, strength: float = 0.3):
        folder = tmp_path_factory.mktemp("runs") / name
        vlm = vlm_models.load("tiny-git", device="cpu")
        attachment = pm.attach(vlm.model, method)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter.add_(strength * torch.randn(parameter.shape, generator=generator))
        attachment.save(folder / "adapter", base_model="tiny-git")
        config = {"model": "tiny-git", "quantization": "none", "dtype": "auto", "revision": None}
        (folder / "run.json").write_text(json.dumps({"status": "done", "config": config}))
        row = {"image": str(picture), "prompt": "what color is the circle?"}
        rows = [row, {**row, "prompt": "is there a star?"}, {"image": None}, {"image": "gone.png"}]
        (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    return make


@pytest.fixture(scope="session")
def near(make_run):
    return make_run("near", pm.LoRA(rank=2, targets=["query", "value"]), 0.02)


@pytest.fixture(scope="session")
def far(make_run):
    return make_run("far", pm.LoRA(rank=4, targets=["query", "value", "dense"]), 0.5)
