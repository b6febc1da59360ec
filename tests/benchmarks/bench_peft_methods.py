"""The figures of peft-methods' README: time and memory beside the frozen model and Hugging Face PEFT, interleaved.

    uv run python tests/benchmarks/bench_peft_methods.py [forward step bytes decode attach grit]

The model is a Qwen2 of hidden size 1024 with random weights and two layers, LoRA of rank 16 is on all its linear
layers, and a batch is 4 x 64 tokens. What is printed is the median over the rounds of (time / the first column's time
in the same round), every contestant once a round. Run it on an otherwise idle machine.
"""

import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import peft
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

import peft_methods as pm

RANK, ROWS, LENGTH = 16, 4, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base(dtype: torch.dtype, layers: int = 2) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def ours(model: nn.Module, method: type[pm.LoRA] = pm.LoRA, **options) -> nn.Module:
    pm.attach(model, method(rank=RANK, alpha=32, targets=LINEAR, **options))
    return model


def theirs(model: nn.Module, best: bool = False, **options) -> nn.Module:
    """peft's LoRA, by default with float32 adapters; its best setting has them in the model's dtype."""
    config = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules=LINEAR, **options)
    return peft.get_peft_model(model, config, autocast_adapter_dtype=not best)


def awake(model: nn.Module) -> nn.Module:
    """With adapters that are not zero, as after some training."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.eq(0).all():
            nn.init.normal_(parameter, std=0.01)
    return model


def batch(rows: int = ROWS, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(512, (rows, length), generator=torch.Generator().manual_seed(0))


def ratios(contestants: dict[str, Callable[[], object]], seconds: float = 40) -> dict[str, float]:
    """Median over the rounds of each one's time over the first's."""
    for run in contestants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[next(iter(times))]) < 5:
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    first = next(iter(times.values()))
    return {name: statistics.median(a / b for a, b in zip(times[name], first, strict=True)) for name in times}


def show(title: str, columns: dict[str, float], note: str = "") -> None:
    cells = "   ".join(f"{name} {value:.3f}" for name, value in columns.items())
    print(f"{title:24}{cells}   {note}", flush=True)


def forward() -> None:
    tokens = batch()
    for name, dtype in DTYPES.items():
        models = {"base": base(dtype), "ours": awake(ours(base(dtype)))}
        models |= {"peft": awake(theirs(base(dtype))), "peft best": awake(theirs(base(dtype), best=True))}

        def runner(model: nn.Module) -> Callable[[], object]:
            return torch.no_grad()(lambda: model.eval()(tokens, use_cache=False).logits)

        show(f"forward, {name}", ratios({name: runner(model) for name, model in models.items()}))


def step() -> None:
    for name, dtype in DTYPES.items():
        for dropout in (0.0, 0.05):
            models = {
                "peft": theirs(base(dtype), lora_dropout=dropout),
                "peft best": theirs(base(dtype), best=True, lora_dropout=dropout),
                "ours": ours(base(dtype), dropout=dropout),
            }
            steps = {who: trainer(awake(model)) for who, model in models.items()}
            losses = ", ".join(f"{run():.4f}" for run in steps.values())
            show(f"step, {name}, dropout {dropout}", ratios(steps), f"(first losses {losses})")


def trainer(model: nn.Module, attachment: pm.Attachment | None = None) -> Callable[[], float]:
    """A training step; it returns the loss."""
    tokens, model = batch(), model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    if attachment is not None:
        attachment.bind(optimizer)

    def run() -> float:
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def kept() -> None:
    """Bytes that one linear layer keeps for backward, in units of its input's."""
    for name, dtype in DTYPES.items():
        for dropout, dora in ((0.0, False), (0.05, False), (0.0, True)):
            x = torch.randn(256, 1024, dtype=dtype, requires_grad=True)
            model = nn.Sequential(nn.Linear(1024, 1024, dtype=dtype))
            columns = {
                "peft": theirs_on(model, dropout, dora),
                "ours": pm.attach(copy.deepcopy(model), pm.LoRA(RANK, dropout=dropout, dora=dora)).model,
            }
            shares = {who: saved_bytes(adapted, x) / x.nbytes for who, adapted in columns.items()}
            show(f"bytes, {name}" + (", dropout" if dropout else ", DoRA" if dora else ""), shares)


def theirs_on(model: nn.Module, dropout: float, dora: bool) -> nn.Module:
    config = peft.LoraConfig(r=RANK, target_modules=["0"], lora_dropout=dropout, use_dora=dora)
    return peft.get_peft_model(copy.deepcopy(model), config)


def saved_bytes(model: nn.Module, x: torch.Tensor) -> int:
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model.train()(x)
    del y
    return sum(sizes.values())


def decode() -> None:
    token = batch(1, 1)
    for name, dtype in DTYPES.items():
        models = {
            "base": base(dtype),
            "ours": awake(ours(base(dtype))),
            "ours DoRA": awake(ours(base(dtype), dora=True)),
        }
        models |= {"peft": awake(theirs(base(dtype))), "peft DoRA": awake(theirs(base(dtype), use_dora=True))}

        def runner(model: nn.Module) -> Callable[[], object]:
            return torch.no_grad()(lambda: model.eval()(token, use_cache=False).logits)

        show(f"one token, {name}", ratios({name: runner(model) for name, model in models.items()}))


def attaching() -> None:
    milliseconds: dict[str, list[float]] = {"ours": [], "peft": []}
    for _ in range(5):
        for who, put in (("ours", ours), ("peft", theirs)):
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = nn.ModuleDict(
                    {f"layer{i}": nn.ModuleDict({n: nn.Linear(64, 64) for n in LINEAR}) for i in range(29)}
                )
            model = model.to_empty(device="cpu")
            started = time.perf_counter()
            put(model)
            milliseconds[who].append(1000 * (time.perf_counter() - started))
    show("attach 203 linears, ms", {who: statistics.median(times) for who, times in milliseconds.items()})


def grit() -> None:
    for name, dtype in DTYPES.items():
        contestants = {}
        for who, method in (("LoRA", pm.LoRA), ("GRIT", pm.GRIT)):
            model = ours(base(dtype), method)
            contestants[who] = trainer(awake(model), pm.attachments(model)[0])
        show(f"step, {name}", ratios(contestants))


SECTIONS = {"forward": forward, "step": step, "bytes": kept, "decode": decode, "attach": attaching, "grit": grit}

if __name__ == "__main__":
    print(f"torch {torch.__version__}, peft {peft.__version__}, {torch.get_num_threads()} threads")
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
