"""Runs as vlm-train leaves them, made without it: a tiny model with an adapter that does something."""

import json

import pytest
import torch

import peft_methods as pm
import vlm_models


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """Makes a run's folder for a tiny model and a method; what is trained gets random values."""

    def make(model: str, method: pm.Method | None = None, quantization: str = "none", seed: int = 0, **more):
        folder = tmp_path_factory.mktemp("run")
        vlm = vlm_models.load(model, quantization, device="cpu")
        attachment = pm.attach(vlm.model, method or pm.LoRA(rank=4, targets=vlm.targets("language")))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        attachment.save(folder / "adapter", base_model=model)
        config = {"model": model, "quantization": quantization, "dtype": "auto", "revision": None, "data": "photos.csv"}
        record = {"status": "done", "config": {**config, "method": "lora", **more}, "model": {"dtype": "float32"}}
        record["data"] = {"train": {"rows": 1200}, "validation": {"rows": 300}}
        record["results"] = {"after": {"exact_match": 0.5}, "intervals": {"exact_match": [0.4, 0.6]}}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return make


@pytest.fixture(scope="session")
def git_run(make_run):
    return make_run("tiny-git")
