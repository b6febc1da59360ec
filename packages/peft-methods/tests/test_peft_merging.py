"""Combining LoRA attachments, against sums of full-size products and peft's own TIES."""

import pytest
import torch
from torch import nn

import peft_methods as pm


def setup(dtype=torch.float64, ranks=(2, 3), targets=(["0", "2"], ["2"])):
    """A model, attachments on it that do something, and the product each adds to each weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 6)).to(dtype)
    parts = [pm.attach(model, pm.LoRA(rank, alpha=3, targets=on)) for rank, on in zip(ranks, targets, strict=True)]
    for attachment in parts:
        for parameter in attachment.parameters():
            nn.init.normal_(parameter)
    return model, parts, [products(attachment) for attachment in parts]


def products(attachment):
    return {path: part.scale * (part.lora_B @ part.lora_A).detach() for path, part in attachment.modules.items()}


def test_linear_is_the_exact_sum():
    model, parts, (first, second) = setup()
    base = [model[0].base.weight.clone(), model[2].base.base.weight.clone()]
    combined = pm.combine(parts, [0.3, -2.0])
    delta = products(combined)
    torch.testing.assert_close(delta["0"], 0.3 * first["0"], atol=1e-12, rtol=0)
    torch.testing.assert_close(delta["2"], 0.3 * first["2"] - 2 * second["2"], atol=1e-12, rtol=0)
    assert pm.attachments(model) == [combined]
    assert all(parameter.requires_grad for parameter in combined.parameters())
    combined.detach()
    assert torch.equal(model[0].weight, base[0]) and torch.equal(model[2].weight, base[1])


def test_linear_gives_the_logits_of_both_on_the_model():
    model, parts, _ = setup(targets=(["0", "2"], ["0", "2"]))
    x = torch.randn(5, 10, dtype=torch.float64)
    expected = model(x)
    pm.combine(parts)
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_svd_is_the_best_approximation(rank):
    _, parts, (first, second) = setup()
    combined = pm.combine(parts, [0.3, -2.0], how="svd", rank=rank)
    total = 0.3 * first["2"] - 2 * second["2"]
    U, S, Vt = torch.linalg.svd(total, full_matrices=False)
    torch.testing.assert_close(products(combined)["2"], U[:, :rank] * S[:rank] @ Vt[:rank], atol=1e-10, rtol=0)


@pytest.mark.parametrize("density", [0.25, 0.75])
def test_ties_is_that_of_peft(density):
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    _, parts, (first, second) = setup()
    delta = products(pm.combine(parts, [0.6, 0.9], how="ties", rank=8, density=density))["2"]
    expected = merge_utils.ties([first["2"], second["2"]], torch.tensor([0.6, 0.9], dtype=torch.float64), density)
    torch.testing.assert_close(delta, expected, atol=1e-10, rtol=0)


def test_ties_by_hand():
    _, parts, _ = setup(ranks=(8, 8), targets=(["2"], ["2"]))
    for attachment, rows in zip(parts, ([[4.0, -3.0, 1.0]], [[2.0, 5.0, 0.5]]), strict=True):
        part = attachment.modules["2"]
        part.lora_A.data.zero_()[0, :3] = torch.tensor(rows[0]).double()
        part.lora_B.data.zero_()[0, 0] = 1 / part.scale
    # The two largest entries of each stay; the second column's sum is positive, so the -3 is left out.
    delta = products(pm.combine(parts, how="ties", density=2 / 48))["2"]
    torch.testing.assert_close(delta[0, :4], torch.tensor([3.0, 5.0, 0, 0]).double(), atol=1e-12, rtol=0)


def test_dare_keeps_the_mean_and_drops_entries():
    total = torch.zeros(6, 8, dtype=torch.float64)
    for seed in range(400):
        _, parts, (first, second) = setup()
        delta = products(pm.combine(parts, [0.5, 1.0], how="dare", rank=8, density=0.5, seed=seed))["2"]
        total += delta / 400
    expected = 0.5 * first["2"] + second["2"]
    assert (total - expected).abs().max() < 0.25 * expected.abs().max()
    kept = torch.stack([first["2"] * 0, first["2"], 2 * second["2"], first["2"] + 2 * second["2"]])
    assert (delta - kept).abs().amin(0).max() < 1e-9  # every entry: kept or dropped in each of the two


def test_same_seed_same_result():
    results = [products(pm.combine(setup()[1], how="dare", seed=seed))["2"] for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_saved_and_loaded(tmp_path):
    model, parts, _ = setup()
    combined = pm.combine(parts, how="svd", rank=2)
    x = torch.randn(5, 10, dtype=torch.float64)
    expected = model(x)
    combined.save(tmp_path)
    combined.detach()
    pm.load(model, tmp_path)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "cat"}, "known: linear, svd"),
        ({"weights": [1.0]}, "1 weights for 2"),
        ({"rank": 3}, "'svd' for a smaller rank"),
        ({"how": "svd", "rank": 0}, "at least 1"),
        ({"how": "ties", "density": 0}, "share in"),
    ],
)
def test_wrong_options_change_nothing(options, message):
    model, parts, _ = setup()
    with pytest.raises(pm.AdapterError, match=message):
        pm.combine(parts, **options)
    assert pm.attachments(model) == parts


def test_what_is_no_sum_is_refused():
    model, parts, _ = setup()
    with pytest.raises(pm.AdapterError, match="only plain LoRA"):
        pm.combine([*parts, pm.attach(model, pm.BitFit())])
    with pytest.raises(pm.AdapterError, match="different models"):
        pm.combine([parts[0], setup()[1][0]])
    with pytest.raises(pm.AdapterError, match="at least one"):
        pm.combine([])
