"""Full-size models on a GPU, in bfloat16 and nf4: training steps beside Hugging Face PEFT with transformers' Trainer.

    uv run python tests/benchmarks/bench_gpu.py [qwen2-vl-2b blip2-opt-2.7b] [--small]

The models have random weights. LoRA of rank 16 is on all linear layers of the language part, from the same factors;
there is no gradient checkpointing. Qwen2-VL gets 8 images of 256 tokens with 4 questions each, BLIP-2 32 images with
captions of 12 tokens; ours has the features of frozen images from its cache, as from the second epoch on. Either
contestant is a process of its own; they take turns, twice each. Printed are the tokens of the rows in a second, by the
median over steps; which share of the GPU's speed in a large product a step's operations reach (model FLOP utilisation,
of what each of the two computes); peak memory, the model's included; and how far losses are apart. Without a GPU, or
with --small, models are small, which only shows that it works.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import high_water
import peft
import torch
import transformers
from bench_fast_paths import (
    OPT_LINEAR,
    QWEN_LINEAR,
    RANK,
    Batch,
    blip2_batch,
    blip2_model,
    by_rows,
    qwen_batch,
    qwen_model,
)
from bench_train_speed import RATE, equal_factors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import peft_methods as pm
from vlm_models.families import Blip2, Chat
from vlm_models.quantize import keep_differentiable, quantization_config

Run = Callable[[int], tuple[list[float], list[float]]]  # so many steps -> their seconds, and all losses up to now
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS, WARM = (12, 3) if DEVICE == "cuda" else (3, 1)
WHOLE = ["visual", "vision_model", "qformer", "language_projection", "lm_head"]  # never quantized
LANGUAGE = {
    "qwen2-vl-2b": rf"model\.language_model.*\.({'|'.join(QWEN_LINEAR)})",
    "blip2-opt-2.7b": rf"language_model.*\.({'|'.join(OPT_LINEAR)})",
}


def main(names: list[str], small: bool) -> None:
    transformers.logging.disable_progress_bar()
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else 'CPU'}; {'small' if small else 'full-size'} models")
    peak = product_speed()
    for name in names or LANGUAGE:
        with tempfile.TemporaryDirectory() as folder:
            save(name, folder, small)
            for quantization in ("none", "nf4"):
                runs: dict[str, list[dict]] = {"theirs": [], "ours": []}
                for who in ("theirs", "ours") * 2:
                    arguments = [who, name, folder, quantization, "small" if small else "full"]
                    command = [sys.executable, "-W", "ignore", __file__, "worker", *arguments]
                    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                    runs[who].append(json.loads(output.splitlines()[-1]))
                told(f"{name}, {quantization.replace('none', 'bfloat16')}", runs, peak)


def told(title: str, runs: dict[str, list[dict]], peak: float) -> None:
    seconds = {who: statistics.median(second for run in its for second in run["seconds"]) for who, its in runs.items()}
    ratio = statistics.median(
        statistics.median(a["seconds"]) / statistics.median(b["seconds"]) for a, b in zip(*runs.values(), strict=True)
    )
    pairs = zip(*(its[0]["losses"][: WARM + STEPS] for its in runs.values()), strict=True)
    apart = max(abs(a - b) / abs(a) for a, b in pairs)
    print(f"{title}: {ratio:.2f} x; losses apart at most {apart:.1e}")
    for who, its in runs.items():
        one = its[0]
        speed, used = one["tokens"] / seconds[who], one["operations"] / seconds[who] / peak
        print(f"  {who:8}{speed:10,.0f} tokens/s  MFU {used:4.0%}  peak {one['peak'] / 2**30:6.2f} GiB", flush=True)


def product_speed() -> float:
    """Operations a second in a large product in bfloat16."""
    side = 8192 if DEVICE == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=DEVICE, dtype=torch.bfloat16)
    seconds = timed(lambda: a @ b, 20)
    return 2 * side**3 / statistics.median(seconds[WARM:])


def timed(step: Callable[[], Any], steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def save(name: str, folder: str, small: bool) -> None:
    """A model of this shape with random weights."""
    if small:
        model = qwen_model() if name == "qwen2-vl-2b" else blip2_model()
    else:
        torch.manual_seed(0)
        config = qwen2_vl_2b() if name == "qwen2-vl-2b" else blip2_opt_27b()
        with torch.device(DEVICE):
            model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.to(torch.bfloat16).save_pretrained(folder)


def qwen2_vl_2b() -> transformers.PreTrainedConfig:
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")
    text = {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    return transformers.Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
        tie_word_embeddings=True,
        **dict(zip(names, range(31990, 31994), strict=True)),
    )


def blip2_opt_27b() -> transformers.PreTrainedConfig:
    """ViT-g and the Q-Former as transformers has them by default."""
    text = transformers.OPTConfig(
        hidden_size=2560, num_hidden_layers=32, ffn_dim=10240, num_attention_heads=32, word_embed_proj_dim=2560,
        vocab_size=50304, dropout=0.0,
    )  # fmt: skip
    vision = transformers.Blip2VisionConfig(initializer_range=0.02)
    return transformers.Blip2Config(
        vision_config=vision, text_config=text, num_query_tokens=32, image_token_index=50303
    )


# ---- a contestant


def worker(who: str, name: str, folder: str, quantization: str, size: str) -> None:
    transformers.logging.disable_progress_bar()
    small = size == "small"
    options = (
        {} if quantization == "none" else {"quantization_config": quantization_config("nf4", torch.bfloat16, WHOLE)}
    )
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": DEVICE}, **options
    ).train()
    keep_differentiable(model)
    batch = (
        qwen_batch(2 if small else 8, 4, side=8 if small else 32)
        if name == "qwen2-vl-2b"
        else blip2_batch(4 if small else 32)
    )
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    batch = {key: value.to(DEVICE) for key, value in batch.items()}
    high_water.reset() if DEVICE == "cpu" else torch.cuda.reset_peak_memory_stats()
    run = (theirs if who == "theirs" else ours)(model, name, batch)
    seconds, losses = run(WARM + STEPS)
    peak = high_water.mark() if DEVICE == "cpu" else torch.cuda.max_memory_allocated()
    with Operations() as operations:
        run(1)
    found = {"tokens": batch["input_ids"].numel(), "operations": operations.total, "peak": peak}
    print(json.dumps({**found, "seconds": seconds[WARM:], "losses": losses}))


def theirs(model: torch.nn.Module, name: str, batch: Batch) -> Run:
    """Trainer's steps; the batch is on the GPU already."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LANGUAGE[name]))
    found = {
        path.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): value
        for path, value in adapted.named_parameters()
        if "lora_A" in path
    }
    equal_factors(found)
    plain, optimizer = by_rows(batch), optimizer_of(adapted)

    def run(steps: int) -> tuple[list[float], list[float]]:
        arguments = transformers.TrainingArguments(
            output_dir=tempfile.gettempdir(), max_steps=steps, per_device_train_batch_size=1, max_grad_norm=1.0,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=DEVICE == "cpu", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = transformers.Trainer(
            adapted, arguments, train_dataset=list(range(steps)), data_collator=lambda rows: plain,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )  # fmt: skip
        stamps = Stamps()
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(stamps)
        trainer.train()
        return stamps.seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return run


class Operations(TorchDispatchMode):
    """Counts the operations of products. (torch's own counter of them does not go with `autograd.grad` inside.)"""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=output)
        return output


class Stamps(transformers.TrainerCallback):
    """How long each step of Trainer takes."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)


def ours(model: torch.nn.Module, name: str, batch: Batch) -> Run:
    """Steps as vlm-train's loop makes them."""
    vlm = (Chat if name == "qwen2-vl-2b" else Blip2)(model, None, name).train()
    attachment = pm.attach(model, pm.LoRA(rank=RANK, alpha=2 * RANK, targets=f"re:{LANGUAGE[name]}"))
    equal_factors({path: part.lora_A for path, part in attachment.modules.items()})
    optimizer = optimizer_of(model)
    batch = {"image_index": torch.arange(len(batch["input_ids"]), device=DEVICE), **batch}
    with torch.no_grad():
        batch["features"] = [one.clone() for one in vlm.encode_images(batch)]

    def step() -> None:
        loss, tokens = vlm(batch)
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(attachment.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss / tokens).item())

    losses: list[float] = []
    return lambda steps: (timed(step, steps), losses)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main([name for name in sys.argv[1:] if name != "--small"], "--small" in sys.argv or DEVICE == "cpu")
