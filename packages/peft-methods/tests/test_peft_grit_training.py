"""GRIT where models are trained: several processes, transformers' Trainer, accelerate, compiled, 4-bit and 16-bit."""

import io
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import peft_methods as pm

PROCESSES = """
import sys
import torch
import torch.distributed as dist
import peft_methods as pm

def train(rank, world):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    attachment = pm.attach(model, pm.GRIT(rank=3, targets=["0", "2"], rebalance_every=2))
    for part in attachment.modules.values():
        torch.nn.init.normal_(part.lora_B)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01)
    attachment.bind(optimizer)
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))
    for step in range(5):
        loss = torch.nn.functional.cross_entropy(wrapped(x.chunk(world)[rank]), y.chunk(world)[rank])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return attachment

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(train(rank, 2).state_dict(), f"{folder}/{rank}.pt")
    shrinking = pm.attach(torch.nn.Sequential(torch.nn.Linear(3, 3)), pm.GRIT(rank=2, energy=0.9))
    try:
        shrinking.bind(torch.optim.SGD(shrinking.parameters(), lr=1.0))
    except pm.AdapterError as error:
        open(f"{folder}/{rank}.txt", "w").write(str(error))
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = [[sys.executable, str(script), str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) for line in lines]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    namespace = {"__name__": "processes"}
    exec(PROCESSES, namespace)
    alone = namespace["train"](0, 1).state_dict()
    for rank in range(2):
        for name, tensor in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-9, atol=1e-12, msg=name)
        assert "energy=None" in (tmp_path / f"{rank}.txt").read_text()


def qwen(dtype=torch.float32):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config).to(dtype)


def attached(model, **options):
    attachment = pm.attach(model, pm.GRIT(**{"rank": 3, "targets": ["q_proj", "v_proj", "down_proj"]} | options))
    torch.manual_seed(1)
    for part in attachment.modules.values():
        nn.init.normal_(part.lora_B, std=0.1)
    return attachment


def factors(attachment):
    return torch.stack([part.curvature.means() for part in attachment.modules.values()])


def tokens(rows=4, length=6):
    return torch.randint(1, 40, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_transformer_changes_nothing(side):
    found, gradients = [], []
    for padded in (False, True):
        model = qwen(torch.float64)
        attachment = attached(model)
        optimizer = torch.optim.SGD(attachment.parameters(), lr=0.0)
        attachment.bind(optimizer)
        attachment.loss_terms(8)
        ids = tokens(2, 5)
        labels = ids.index_fill(1, torch.tensor([0]), -100)  # nothing is before the first
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(5)[None]}
        if padded:
            pad = (3, 0) if side == "left" else (0, 3)
            batch = {name: F.pad(value, pad) for name, value in batch.items()}
            labels = F.pad(labels, pad, value=-100)
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        (F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / 8).backward()
        gradients.append([parameter.grad.clone() for parameter in attachment.parameters()])
        optimizer.step()
        found.append(factors(attachment))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_a_transformer_changes_nothing(reentrant):
    found = []
    for recompute in (False, True):
        model = qwen(torch.float64).train()
        attachment = attached(model, dropout=0.2)
        if recompute:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        optimizer = torch.optim.SGD(attachment.parameters(), lr=0.01)
        attachment.bind(optimizer)
        for step in range(3):
            torch.manual_seed(step)
            model(tokens(), labels=tokens(), use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(attachment.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-9, atol=1e-13, msg=name)


def steps_of_a_bare_loop(accumulate, **options):
    model = qwen().train()
    attachment = attached(model, **options)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01, weight_decay=0.0)
    attachment.bind(optimizer)
    for _ in range(3):
        for rows in tokens().chunk(accumulate):
            (model(rows, labels=rows).loss / accumulate).backward()
        nn.utils.clip_grad_norm_(attachment.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return attachment


def test_trainer_does_what_a_bare_loop_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    for accumulate in (1, 2):
        expected = steps_of_a_bare_loop(accumulate).state_dict()
        model = qwen()
        attachment = attached(model)
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01, weight_decay=0.0)
        attachment.bind(optimizer)
        arguments = transformers.TrainingArguments(
            tmp_path, per_device_train_batch_size=4 // accumulate, gradient_accumulation_steps=accumulate, max_steps=3,
            max_grad_norm=1.0, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in tokens()] * 3
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, constant))
        trainer._get_train_sampler = torch.utils.data.SequentialSampler
        trainer.train()
        assert all(part.steps == 3 and part.curvature.weight > 0 for part in attachment.modules.values())
        for name, tensor in attachment.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7, msg=name)


def test_accelerate_does_what_a_bare_loop_does():
    accelerate = pytest.importorskip("accelerate")
    expected = steps_of_a_bare_loop(2).state_dict()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # left by a Trainer
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = qwen().train()
    attachment = attached(model)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01, weight_decay=0.0)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    attachment.bind(optimizer)  # accelerate's wrapper of it
    for _ in range(3):
        for rows in tokens().chunk(2):
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(rows, labels=rows).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(attachment.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    for name, tensor in attachment.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7, msg=name)


def test_natural_gradients_change_what_is_learned():
    """The tests above compare GRIT with itself."""
    lora = pm.attach(model := qwen().train(), pm.LoRA(rank=3, targets=["q_proj", "v_proj", "down_proj"]))
    torch.manual_seed(1)
    for part in lora.modules.values():
        nn.init.normal_(part.lora_B, std=0.1)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(3):
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    grit = dict(steps_of_a_bare_loop(1).named_parameters())
    differences = [(grit[name] - parameter).abs().max().item() for name, parameter in lora.named_parameters()]
    assert min(differences) > 0.005


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_train_and_measure_the_same(backend):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        attachment = attached(model, targets=["0", "2"])
        optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
        attachment.bind(optimizer)
        run = torch.compile(model, backend=backend) if compiled else model
        x, y = torch.randn(16, 6), torch.randint(4, (16,))
        for _ in range(3):
            loss = F.cross_entropy(run(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((loss, attachment.state_dict()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_lora_in_every_other_respect(dtype, tmp_path):
    model = qwen(dtype).eval()
    base = model(tokens()).logits
    attachment = attached(model)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01)
    attachment.bind(optimizer)
    for _ in range(3):
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(parameter.dtype == torch.float32 for parameter in attachment.parameters())
    trained = model(tokens()).logits
    with attachment.disabled():
        assert torch.equal(model(tokens()).logits, base)
    attachment.merge()
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.05}
    torch.testing.assert_close(model(tokens()).logits, trained, **tolerance)
    attachment.unmerge()
    assert torch.equal(model(tokens()).logits, trained)
    file = io.BytesIO()
    torch.save(model, file)  # bound, with the hooks' state
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(tokens()).logits, trained)
    attachment.save(tmp_path)
    attachment.detach()
    assert torch.equal(model(tokens()).logits, base)
    pm.load(model, tmp_path)
    assert torch.equal(model(tokens()).logits, trained)


def test_peft_loads_what_grit_saves_with_ranks_of_its_own(tmp_path):
    peft = pytest.importorskip("peft")
    model = qwen()
    attachment = attached(model, rank=6, alpha=9, energy=0.9, rebalance_every=2, min_rank=1, patience=1)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01)
    attachment.bind(optimizer)
    for _ in range(4):
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len({len(part.lora_A) for part in attachment.modules.values()}) > 1
    expected = model(tokens()).logits
    attachment.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(qwen(), tmp_path)
    torch.testing.assert_close(theirs(tokens()).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_4_bit_base():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    model = nn.Sequential(layer)
    attachment = attached(model, targets=["0"])
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.0)
    attachment.bind(optimizer)
    part, x = attachment.modules["0"], torch.randn(10, 64)
    model.train()(x).square().mean().backward()
    optimizer.step()
    h = part.scale * x @ part.lora_A.t()
    torch.testing.assert_close(part.curvature.means()[0], h.t() @ h / 10, rtol=1e-3, atol=1e-4)
    assert part.curvature.means()[1].trace() > 0
