"""Train a tiny checkpoint on drawn scenes and write it where the package ships it.

    uv run python packages/vlm-models/recipes/train_tiny.py tiny-qwen2-vl

Every step draws new scenes; all questions about a scene share one run of the image encoder. Only `scenes` is seen,
never easy-VQA. Held-out scenes (another split of the generator) give the accuracies in the model card.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from architectures import build

import vlm_data
from vlm_data.sources import scenes
from vlm_models import TINY, VLM, load, tiny_folder

SCENES, QUESTIONS = 24, 7  # drawn for a step, and questions asked about each
HELD_OUT = 1000  # scenes
MAX_BYTES = 4_000_000
CARD = """# {name}

A tiny `{model_class}` ({parameters:,} parameters, {size:.1f} MB in float16), of the architecture of
{like} and trained from nothing on drawn scenes (`vlm_data.open("scenes")`), never on
easy-VQA. It makes every command of this repository run without a download; it knows nothing but coloured shapes.

| held-out scenes, exact match | |
|---|---|
| questions ({questions:,}) | {question_accuracy:.3f} |
| captions ({captions:,}) | {caption_accuracy:.3f} |

{steps:,} steps of {scenes} scenes, {minutes:.0f} minutes on {threads} thread(s). Trained again by

    uv run python packages/vlm-models/recipes/train_tiny.py {name}
"""


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: optimizer steps, peak learning rate, and whether matrix products are in bfloat16."""

    steps: int
    learning_rate: float
    bfloat16: bool


RECIPES = {
    "tiny-git": Recipe(steps=2000, learning_rate=2e-3, bfloat16=True),
    "tiny-blip2": Recipe(steps=2000, learning_rate=2e-3, bfloat16=True),
    "tiny-qwen2-vl": Recipe(steps=1600, learning_rate=2.5e-3, bfloat16=True),
    "tiny-vit-gpt2": Recipe(steps=2000, learning_rate=2e-3, bfloat16=False),
}


def train(name: str, steps: int, out: Path) -> None:
    """Train `name` and save it in `out`, in float16, with a model card."""
    recipe = RECIPES[name]
    peak = recipe.learning_rate
    torch.manual_seed(0)
    vlm = build(name, _texts()).train()
    collate = vlm_data.collator(vlm.processor, vlm.family)
    optimizers = _optimizers(vlm, peak)
    average = math.log(len(vlm.processor.tokenizer))
    start = time.perf_counter()
    for step in range(steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = peak * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        batch = collate(_rows(random.Random(f"tiny/{step}"), negated=step > steps / 3))
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            loss, count = vlm(batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(vlm.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average += 0.02 * (loss.item() / count.item() - average)
        if (step + 1) % 100 == 0:
            print(f"{name} step {step + 1}/{steps} loss {average:.3f} {time.process_time():.0f} s", flush=True)
        if (step + 1) % 500 == 0 and step + 1 < steps:
            print(name, "held-out (questions, captions)", accuracy(vlm, 100), flush=True)
    minutes = (time.perf_counter() - start) / 60
    vlm.model.half()
    vlm.save(str(out))
    write_card(name, out, steps, minutes)


def write_card(name: str, out: Path, steps: int, minutes: float) -> None:
    """Evaluate what was saved, as it will be loaded, and write the numbers beside it."""
    vlm = load(str(out))
    questions, captions = accuracy(vlm, HELD_OUT)
    size = sum(file.stat().st_size for file in out.iterdir())
    if size > MAX_BYTES:
        raise SystemExit(f"{name} is {size:,} bytes, more than {MAX_BYTES:,}")
    rows = list(scenes.read("held-out", HELD_OUT))
    card = CARD.format(
        name=name, model_class=type(vlm.model).__name__, like=TINY[name], size=size / 1e6, steps=steps,
        parameters=sum(parameter.numel() for parameter in vlm.parameters()), scenes=SCENES, minutes=minutes,
        threads=torch.get_num_threads(), question_accuracy=questions, caption_accuracy=captions,
        questions=sum(row["prompt"] is not None for row in rows), captions=HELD_OUT,
    )  # fmt: skip
    (out / "README.md").write_text(card)
    print(card)


def accuracy(vlm: VLM, size: int) -> tuple[float, float]:
    """Exact match on held-out scenes: of answers, of captions."""
    collate = vlm_data.collator(vlm.processor, vlm.family)
    right: dict[bool, list[bool]] = {True: [], False: []}
    rows = list(scenes.read("held-out", size))
    for start in range(0, len(rows), 200):
        part = rows[start : start + 200]
        for row, answer in zip(part, vlm.generate(collate.prompts(part), max_new_tokens=16), strict=True):
            right[row["prompt"] is not None].append(answer.text == row["references"][0])
    return sum(right[True]) / len(right[True]), sum(right[False]) / len(right[False])


def _rows(rng: random.Random, negated: bool) -> list[dict]:
    """The rows of one step: of each new scene its caption and some of its questions.

    Negated questions come later: with them from the start, "yes" and "no" are an exclusive or of what is asked and what
    is seen, and no model finds out for thousands of steps.
    """
    rows = []
    for _ in range(SCENES):
        image, (caption, *questions) = scenes.scene(rng)
        picture = {"path": None, "bytes": scenes.png(image)}
        asked = [pair for pair in questions if negated or not scenes.is_negated(pair[0])]
        pairs = [caption, *rng.sample(asked, min(QUESTIONS, len(asked)))]
        rows += [{"image": picture, "prompt": p, "references": [a], "source": "scenes"} for p, a in pairs]
    return rows


def _texts() -> list[str]:
    """What the sources can say: scenes and the questions of easy-VQA (their words, not their images or answers)."""
    asked = {row["prompt"] for row in vlm_data.open("easy-vqa", split="train").select_columns("prompt")}
    return [*scenes.texts(), *sorted(asked) * 20]


def _optimizers(vlm: VLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside, AdamW for embeddings, head, biases and norms.

    Muon reaches here in a third of the steps what AdamW alone does.
    """
    outside = ("embed", "query_tokens", "wte", "wpe")
    inside = [
        parameter
        for name, parameter in vlm.model.named_parameters()
        if parameter.ndim == 2 and parameter is not vlm.head.weight and not any(part in name for part in outside)
    ]
    chosen = {id(parameter) for parameter in inside}
    others = [parameter for parameter in vlm.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(inside, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps; by default the recipe's")
    parser.add_argument("--out", type=Path, default=None, help="folder; by default inside the package")
    options = parser.parse_args()
    steps = options.steps or RECIPES[options.name].steps
    train(options.name, steps, options.out or tiny_folder(options.name))
