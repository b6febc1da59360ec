"""--gradient-checkpointing: less is kept for the backward pass, and the run is the same."""

import json

import pytest
import torch
from rich.console import Console

import vlm_data
from vlm_train.adapting.attaching import attach
from vlm_train.loading import load_model, plan_model
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.run import run

OPTIONS = {"data": "scenes", "device": "cpu", "max_steps": 3, "val_rows": 8, "batch_size": 8}
BOTH = (False, True)


@pytest.mark.parametrize("name", ["tiny-git", "tiny-blip2", "tiny-qwen2-vl", "tiny-vit-gpt2"])
def test_layers_keep_their_inputs_alone(name):
    kept, losses = [], []
    for on in BOTH:
        config = TrainConfig(**OPTIONS, model=name, gradient_checkpointing=on)
        config, plan = plan_model(config, Processes())
        vlm = load_model(plan, config, Processes(), Console(quiet=True)).train()
        attachment = attach(config, vlm)
        rows = vlm_data.open("scenes", split="train", size=20).select(range(16)).to_list()
        batch = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)(rows)
        batch["features"] = vlm.encode_images(batch)
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        torch.manual_seed(0)
        weights = {parameter.data_ptr() for parameter in vlm.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = vlm(batch)
        loss.backward()
        kept.append(sum(size for place, size in sizes.items() if place not in weights))
        losses.append([loss.detach(), *(parameter.grad for parameter in attachment.parameters())])
    assert kept[1] < 0.4 * kept[0]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)


def test_the_run_is_the_same(tmp_path):
    found = []
    for on in BOTH:
        out = run(
            TrainConfig(
                **OPTIONS, model="tiny-git", dropout=0.1, gradient_checkpointing=on, out=str(tmp_path / str(on))
            )
        )
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found.append([line["loss"] for line in lines if "loss" in line])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
