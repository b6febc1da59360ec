"""GRIT's curvature against the exact Fisher information, however the rows come: padded, split, recomputed, scaled."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import jacobian
from torch.utils.checkpoint import checkpoint

import peft_methods as pm
from peft_methods.grit.curvature import count

DOUBLE = torch.float64


class Net(nn.Module):
    """Two layers that GRIT goes on, between a frozen one and the loss."""

    def __init__(self, activation=nn.Identity):
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 4)
        self.activation = activation()

    def forward(self, x):
        return self.second(self.activation(self.first(self.embed(x))))


def setup(activation=nn.Identity, dtype=DOUBLE, seed=0, model=None, **options):
    """Net with a GRIT whose B is not zero, and an optimizer that leaves everything in its place."""
    torch.manual_seed(seed)
    model = (model() if model else Net(activation)).to(dtype)
    options = {"rank": 3, "alpha": 4, "targets": ["first", "second"], "decay": 0.0, **options}
    attachment = pm.attach(model, pm.GRIT(**options))
    for part in attachment.modules.values():
        nn.init.normal_(part.lora_B, std=0.5)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.0)
    attachment.bind(optimizer)
    return model, attachment, optimizer


def rows_of(attachment):
    curvatures = [part.curvature for part in attachment.modules.values()]
    count(curvatures)
    return [int(curvature.rows) for curvature in curvatures]


def factors(attachment):
    return torch.stack([part.curvature.means() for part in attachment.modules.values()])


def data(rows=6, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 7, generator=generator, dtype=dtype), torch.randint(4, (rows,), generator=generator)


def test_factors_are_those_of_the_exact_fisher_information_of_deep_linear_networks():
    for positions, loss in ((1, "mean"), (5, "mean"), (1, "sum"), (5, "sum")):
        model, attachment, optimizer = setup(fisher="sampled", loss=loss)
        x = torch.randn(3, positions, 7, dtype=DOUBLE)
        terms = 3 * positions
        model(x).sum().backward()  # training's own, which does not count
        attachment.loss_terms(terms)
        with pm.measuring(attachment):  # squared error: the Fisher information is that of the outputs themselves
            for output in range(4):
                (model(x)[..., output].sum() / (terms if loss == "mean" else 1)).backward()
        optimizer.step()

        inputs = {"first": model.embed(x), "second": model.first(model.embed(x))}
        after = {"first": model.second, "second": nn.Identity()}
        for path, part in attachment.modules.items():
            rows, rest = inputs[path].detach().flatten(0, 1), after[path]

            def output(A, B, part=part, rows=rows, rest=rest):
                return rest(part.base(rows) + part.scale * rows @ A.t() @ B.t())

            jacobians = jacobian(output, (part.lora_A, part.lora_B))
            exact_A, exact_B = (J.flatten(2).flatten(0, 1).t() @ J.flatten(2).flatten(0, 1) / terms for J in jacobians)
            G = jacobian(rest, part.base(rows[0]))  # the gradients of the outputs, here the same for every row
            sigma_a, sigma_g = part.curvature.means()
            torch.testing.assert_close(torch.kron(sigma_g, rows.t() @ rows / terms), exact_A, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(torch.kron(G.t() @ G, sigma_a), exact_B, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_with_a_single_row_the_fisher_information_is_the_gradients_outer_product(loss):
    model, attachment, optimizer = setup(nn.Tanh, loss=loss)
    x, y = data(1)
    F.cross_entropy(model(x), y, reduction=loss).backward()
    gradients = {
        path: (part.lora_A.grad.clone(), part.lora_B.grad.clone()) for path, part in attachment.modules.items()
    }
    optimizer.step()
    inputs = {"first": model.embed(x), "second": model.activation(model.first(model.embed(x)))}
    for path, part in attachment.modules.items():
        (sigma_a, sigma_g), x_in, (for_A, for_B) = part.curvature.means(), inputs[path], gradients[path]
        exact = torch.outer(for_A.flatten(), for_A.flatten())
        torch.testing.assert_close(torch.kron(sigma_g, x_in.t() @ x_in), exact, rtol=1e-10, atol=1e-16)
        h = part.scale * x_in @ part.lora_A.t()
        g = for_B @ h.t() / h.square().sum()  # for_B = g hᵀ
        exact = torch.outer(for_B.flatten(), for_B.flatten())
        torch.testing.assert_close(torch.kron(g @ g.t(), sigma_a), exact, rtol=1e-10, atol=1e-16)


def test_micro_batches_are_as_one_batch():
    x, y = data(8)
    found = {}
    for parts in (1, 4):
        for told in (False, True):
            model, attachment, optimizer = setup(nn.Tanh)
            if told:
                attachment.loss_terms(torch.tensor(8))
            for some_x, some_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(model(some_x), some_y, reduction="sum") / 8).backward()
            optimizer.step()
            found[parts, told] = factors(attachment)
    for each in found.values():
        torch.testing.assert_close(each, found[1, False], rtol=1e-12, atol=1e-15)


def test_a_sum_and_a_mean_have_the_same_curvature():
    x, y = data()
    found = []
    for loss in ("mean", "sum"):
        model, attachment, optimizer = setup(nn.Tanh, loss=loss)
        F.cross_entropy(model(x), y, reduction=loss).backward()
        optimizer.step()
        found.append(factors(attachment))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)


def test_rows_without_a_part_in_the_loss_are_no_rows():
    x, y = data(8)
    ignored = torch.tensor([1, 1, -100, 1, -100, 1, 1, -100]) < 0
    found = []
    for rows, labels in ((x, y.masked_fill(ignored, -100)), (x[~ignored], y[~ignored])):
        model, attachment, optimizer = setup(nn.Tanh)
        F.cross_entropy(model(rows), labels).backward()
        assert rows_of(attachment) == [5, 5]
        optimizer.step()
        found.append(factors(attachment))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x, mask=None):
            return self.encoder(x, src_key_padding_mask=mask)

    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(length, 8, generator=generator, dtype=DOUBLE) for length in (5, 2, 4)]
    found = []
    for padded in (False, True):
        model, attachment, optimizer = setup(model=Encoder, targets=["linear1", "linear2"])
        attachment.loss_terms(len(sequences))
        if padded:
            x = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=9.0, padding_side=side)
            ones = [torch.ones(len(sequence)) for sequence in sequences]
            mask = nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side) == 0
            y = model(x, mask)
            last = [row[~blank][-1] for row, blank in zip(y, mask, strict=True)]
        else:
            last = [model(sequence[None])[0, -1] for sequence in sequences]
        sum(row.square().sum() for row in last).div(3).backward()
        rows = rows_of(attachment)
        assert rows == [11, 11, 3, 3]  # the last layer's other positions are used by no one
        optimizer.step()
        found.append([part.curvature.means() for part in attachment.modules.values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing_also_where_a_module_is_called_twice(reentrant):
    class Twice(Net):
        recompute = False

        def forward(self, x):
            inner = (lambda *a: checkpoint(*a, use_reentrant=reentrant)) if self.recompute else (lambda f, v: f(v))
            h = self.embed(x).requires_grad_()
            h = inner(lambda v: torch.tanh(self.first(v)), h)
            h = inner(lambda v: torch.tanh(self.first(F.pad(v, (0, 1)))), h)
            return inner(self.second, h)

    x, y = data()
    found, gradients = [], []
    for recompute in (False, True):
        model, attachment, optimizer = setup(model=Twice, dropout=0.3)
        model.recompute = recompute
        torch.manual_seed(5)
        F.cross_entropy(model(x), y).backward()
        assert rows_of(attachment) == [12, 6]
        gradients.append([parameter.grad.clone() for parameter in attachment.parameters()])
        optimizer.step()
        found.append(factors(attachment))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)


def test_dropout_is_in_the_curvature():
    """Σ_a against A times the masked input, with the mask from the product's own output."""
    model, attachment, optimizer = setup(
        model=lambda: nn.Sequential(nn.Linear(6, 6)), rank=6, targets=["0"], dropout=0.4
    )
    part = attachment.modules["0"]
    with torch.no_grad():
        part.base.weight.zero_(), part.base.bias.zero_()
        part.lora_B.copy_(torch.eye(6) / part.scale)
    x = torch.randn(50, 6, dtype=DOUBLE)
    h = part.scale * model(x)  # with this B the layer's output is dropout(x) Aᵀ
    (h / part.scale).square().sum().mul(0.5 / 50).backward()
    optimizer.step()
    sigma_a, sigma_g = part.curvature.means()
    torch.testing.assert_close(sigma_a, h.t() @ h / 50, rtol=1e-10, atol=1e-12)
    delta = h / part.scale  # the loss's gradient there, times the 50 terms
    torch.testing.assert_close(sigma_g, delta.t() @ delta / 50, rtol=1e-10, atol=1e-12)


def test_autocast_and_16_bit_models_measure_nearly_the_same_in_float32():
    x, y = data(64, torch.float32)
    found = {}
    for kind in ("float32", "autocast", "bfloat16"):
        model, attachment, optimizer = setup(nn.Tanh, dtype=torch.float32)
        if kind == "bfloat16":
            model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            loss = F.cross_entropy(model(x.bfloat16() if kind == "bfloat16" else x).float(), y)
        loss.backward()
        optimizer.step()
        found[kind] = factors(attachment)
        assert found[kind].dtype == torch.float32
    for kind in ("autocast", "bfloat16"):
        difference = (found[kind] - found["float32"]).flatten(2).norm(dim=-1) / found["float32"].flatten(2).norm(dim=-1)
        assert 0 < difference.max() < 0.05


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_changes_nothing_and_a_step_that_it_skips_leaves_no_trace(fused):
    x, y = data(16, torch.float32)
    found, weights = [], []
    for scaled in (False, True):
        model, attachment, _ = setup(nn.Tanh, dtype=torch.float32, decay=0.5, trust_region=1e-4)
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        attachment.bind(optimizer, scaler)
        for step in range(4):
            overflow = scaled and step == 2
            for again in range(1 + overflow):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                scaler.scale(loss * (float("inf") if overflow and not again else 1)).backward()
                scaler.step(optimizer)
                scaler.update()
        found.append(factors(attachment))
        weights.append([parameter.detach().clone() for parameter in attachment.parameters()])
        assert all(int(part.steps) == 4 for part in attachment.modules.values())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_what_belongs_to_dropped_gradients_is_dropped():
    model, attachment, optimizer = setup(nn.Tanh)
    x, y = data(4)
    F.cross_entropy(model(data(9)[0]), data(9)[1]).backward()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    other, expected, step = setup(nn.Tanh)
    F.cross_entropy(other(x), y).backward()
    step.step()
    torch.testing.assert_close(factors(attachment), factors(expected), rtol=0, atol=0)


def test_nothing_is_measured_while_B_is_zero_and_gradients_stay_plain():
    model, attachment, _ = setup(nn.Tanh)
    for part in attachment.modules.values():
        nn.init.zeros_(part.lora_B)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=1.0)
    attachment.bind(optimizer)
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    plain = [parameter.grad.clone() for parameter in attachment.parameters()]
    optimizer.step()
    assert all(part.curvature.weight == 0 for part in attachment.modules.values())
    torch.testing.assert_close([parameter.grad for parameter in attachment.parameters()], plain, rtol=0, atol=0)


def test_the_average_over_steps_is_without_bias():
    model, attachment, optimizer = setup(nn.Tanh, decay=0.9)
    each, (x, y) = [], data(12)
    for some_x, some_y in zip(x.chunk(3), y.chunk(3), strict=True):
        alone, its, step = setup(nn.Tanh)
        for net, opt in ((model, optimizer), (alone, step)):
            opt.zero_grad()
            F.cross_entropy(net(some_x), some_y).backward()
            opt.step()
        each.append(factors(its))
    expected = (0.81 * each[0] + 0.9 * each[1] + each[2]) / (0.81 + 0.9 + 1)
    torch.testing.assert_close(factors(attachment), expected, rtol=1e-10, atol=1e-15)


def test_measuring_apart_from_training():
    model, attachment, optimizer = setup(nn.Tanh, fisher="sampled")
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    before = [parameter.grad.clone() for parameter in attachment.parameters()]
    assert not any(rows_of(attachment))
    for some in x.chunk(2):  # in parts, like training
        labels = torch.distributions.Categorical(logits=model(some)).sample()
        with pm.measuring(attachment):
            F.cross_entropy(model(some), labels).div(2).backward()
    torch.testing.assert_close([parameter.grad for parameter in attachment.parameters()], before, rtol=0, atol=0)
    F.cross_entropy(model(x), y).backward()
    assert rows_of(attachment) == [6, 6]
    optimizer.step()
    assert factors(attachment).isfinite().all()

    empirical = setup()[1]
    with pytest.raises(pm.AdapterError, match=r'fisher="sampled"'), pm.measuring(empirical):
        pass


def test_a_copy_measures_for_itself():
    model, attachment, optimizer = setup(nn.Tanh)
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x[:4]), y[:4]).backward()
    rows = [rows_of(pm.attachments(each)[0]) for each in (model, twin)]
    assert rows == [[6, 6], [4, 4]]
