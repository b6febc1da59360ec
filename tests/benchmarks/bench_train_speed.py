"""vlm-train's engine beside Hugging Face PEFT with transformers' Trainer: same model, rows, batch, seed, float32.

    uv run python tests/benchmarks/bench_train_speed.py [easy-vqa captions growth overhead]

easy-vqa: questions to tiny-qwen2-vl, batches of 32. captions: scenes and a random BLIP-2 of 100 M parameters (ViT 12 x
384 at 224 px, 32 queries, OPT 12 x 512 with 50,304 words), batches of 8. LoRA of rank 16 on the language part, from the
same factors; AdamW at a constant rate. Either contestant is a process of its own; they take turns at rounds of steps.
Printed are the median over the rounds of (rows a second of ours / theirs), the same for a first epoch with the images'
encoding, the memory that training takes above the loaded model, and how far losses are apart.

growth: time of a row and memory of ours with 1,000, 10,000 and 100,000 rows, in turns. overhead: milliseconds of ours
per step outside forward, backward and optimizer step. Run it on an otherwise idle machine, with Linux.
"""

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import datasets
import high_water
import torch
import transformers
from PIL import Image
from rich.console import Console

import vlm_data
import vlm_models
from vlm_train.adapting.attaching import attach
from vlm_train.adapting.methods import method_of
from vlm_train.engine.loop import train
from vlm_train.engine.optimizers import make_optimizer
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.features import encode_once

RATE, ROUNDS = 1e-4, 5
STEPS = {"easy-vqa": 20, "captions": 4}  # of a round
BATCH = {"easy-vqa": 32, "captions": 8}
FIRST_EPOCH = {"easy-vqa": 1920, "captions": 160}  # rows
NEVER = 10**9  # steps


def main(names: list[str]) -> None:
    for name in names or [*STEPS, "growth", "overhead"]:
        if name in STEPS:
            compare(name)
        else:
            print(Worker(name, "").ask("go"), flush=True)


class Worker:
    """A contestant in a process of its own, which answers requests in lines of JSON."""

    def __init__(self, who: str, what: str):
        command = [sys.executable, "-W", "ignore", __file__, "worker", who, what]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: str) -> Any:
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)


def compare(what: str) -> None:
    both = {who: Worker(who, what) for who in ("theirs", "ours")}
    first = {who: worker.ask("first epoch") for who, worker in both.items()}
    rounds = [{who: worker.ask("round") for who, worker in both.items()} for _ in range(ROUNDS + 1)][
        1:
    ]  # one to warm up
    memory = {who: worker.ask("memory") / 2**20 for who, worker in both.items()}
    ratio = statistics.median(one["theirs"]["seconds"] / one["ours"]["seconds"] for one in rounds)
    speed = {who: BATCH[what] * STEPS[what] / statistics.median(one[who]["seconds"] for one in rounds) for who in both}
    losses = {who: first[who]["losses"] + [loss for one in rounds for loss in one[who]["losses"]] for who in both}
    apart = max(abs(a - b) / abs(a) for a, b in zip(losses["theirs"], losses["ours"], strict=True))
    curve = " ".join(f"{loss:.3f}" for loss in losses["ours"][:: 1 + len(losses["ours"]) // 8])
    sooner = first["theirs"]["seconds"] / first["ours"]["seconds"]
    print(
        f"{what}: {ratio:.1f} x rows a second ({speed['ours']:.0f} and {speed['theirs']:.0f}); first epoch of "
        f"{FIRST_EPOCH[what]} rows {sooner:.1f} x; memory above the model {memory['ours'] / memory['theirs']:.2f} x "
        f"({memory['ours']:.0f} and {memory['theirs']:.0f} MiB); {len(losses['ours'])} losses from {curve}, apart at "
        f"most {apart:.1e}",
        flush=True,
    )


# ---- the same model and rows for both


def subject(what: str) -> tuple[vlm_models.VLM, Any]:
    if what == "easy-vqa":
        rows = vlm_data.open("easy-vqa", split="train").select(range(FIRST_EPOCH[what]))  # of some 200 images
        return vlm_models.load("tiny-qwen2-vl"), rows
    from bench_fast_paths import blip2_model

    model, processor = blip2_model(), vlm_models.load("tiny-blip2").processor
    processor.image_processor.size = {"height": 224, "width": 224}
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    processor.num_query_tokens = 32
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        rows = vlm_data.open("scenes", split="train")
        captions = rows.filter(lambda prompt: prompt is None, input_columns="prompt")
        return vlm_models.load(folder, dtype="float32"), captions.select(range(FIRST_EPOCH[what]))


def held(vlm: vlm_models.VLM) -> int:
    """The memory before training, in bytes, with all of the weights, which are mapped from their file until then."""
    for parameter in vlm.model.parameters():
        parameter.detach().sum()
    return high_water.reset()


def equal_factors(named: dict[str, torch.Tensor]) -> None:
    """The first LoRA factors, by module, from a seed that both share."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name in sorted(named):
            named[name].copy_(torch.randn(named[name].shape, generator=generator) / named[name].shape[1] ** 0.5)


# ---- ours


class Ours:
    def __init__(self, what: str):
        self.vlm, self.rows = subject(what)
        self.loaded = held(self.vlm)
        self.engine = Engine(self.vlm, self.rows, BATCH[what])
        self.steps = FIRST_EPOCH[what] // BATCH[what], STEPS[what]

    def first(self) -> dict:
        started = time.perf_counter()
        self.engine.encode()
        losses = self.engine.go(self.steps[0])
        return {"seconds": time.perf_counter() - started, "losses": losses}

    def round(self) -> dict:
        started = time.perf_counter()
        losses = self.engine.go(self.steps[1])
        return {"seconds": time.perf_counter() - started, "losses": losses}


class Engine:
    """vlm-train's loop on some rows, with what `vlm-train` puts around it to compute the steps."""

    def __init__(self, vlm: vlm_models.VLM, rows: Any, batch: int):
        self.config = TrainConfig(schedule="constant", warmup=0.0, learning_rate=RATE, batch_size=batch)
        self.vlm, self.rows, self.processes = vlm, rows, Processes()
        self.attachment = attach(self.config, vlm)
        equal_factors({path: part.lora_A for path, part in self.attachment.modules.items()})
        self.optimizer = make_optimizer(self.attachment.parameter_groups(RATE), self.config)
        self.attachment.bind(self.optimizer)
        self.collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
        self.running = None

    def encode(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        cache = vlm_models.FeatureCache(self.vlm, self.folder.name, 2**34)
        features = encode_once(cache, self.collate, self.rows, Console(quiet=True))
        batches = Batches(self.vlm, self.collate, self.rows, features, self.config, self.processes)
        self.running = train(self.vlm, self.attachment, self.optimizer, batches, NEVER, self.config, self.processes)

    def go(self, steps: int) -> list[float]:
        return [next(self.running).loss for _ in range(steps)]


# ---- PEFT and Trainer


class Theirs:
    """As their users write it: the processor in the collator, every row an image of its own, the whole head."""

    def __init__(self, what: str):
        import peft

        # In their process the layers are as transformers has them.
        vlm_models.vlm.keep_less = vlm_models.vlm.speed_up = lambda model: None
        vlm, self.rows = subject(what)
        self.loaded = held(vlm)
        self.what, self.processor = what, vlm.processor
        targets = method_of(TrainConfig(), vlm).targets
        pattern = targets.removeprefix("re:") if isinstance(targets, str) else targets
        self.model = peft.get_peft_model(vlm.model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=pattern))
        factors = {
            name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): value
            for name, value in self.model.named_parameters()
            if "lora_A" in name
        }
        equal_factors(factors)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        self.order, self.step = Batches(None, None, self.rows, None, _config(what), Processes()).order, 0

    def first(self) -> dict:
        return self._go(FIRST_EPOCH[self.what] // BATCH[self.what])

    def round(self) -> dict:
        return self._go(STEPS[self.what])

    def _go(self, steps: int) -> dict:
        numbers = [number for step in range(self.step, self.step + steps) for number in self.order.step(step)]
        self.step += steps
        rows = self.rows.select(numbers)
        losses: list[float] = []
        arguments = transformers.TrainingArguments(
            output_dir=tempfile.gettempdir(), max_steps=steps, per_device_train_batch_size=BATCH[self.what],
            learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=1.0, logging_steps=1, report_to=[],
            save_strategy="no", use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = InOrder(
            self.model, arguments, train_dataset=rows, data_collator=getattr(self, f"_{self.what.replace('-', '_')}"),
            optimizers=(self.optimizer, torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)),
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {"seconds": seconds, "losses": losses}

    def _easy_vqa(self, rows: list[dict]) -> dict:
        texts, prompts = [], []
        for row in rows:
            asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]}
            answer = {"role": "assistant", "content": [{"type": "text", "text": row["references"][0]}]}
            prompts.append(self.processor.apply_chat_template([asked], add_generation_prompt=True))
            texts.append(self.processor.apply_chat_template([asked, answer]).removesuffix("\n"))
        pictures = [_picture(row) for row in rows]
        batch = self.processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")
        words = self.processor.tokenizer(
            [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)], add_special_tokens=False
        ).input_ids
        labels = torch.full_like(batch["input_ids"], -100)
        for row, (length, ids) in enumerate(zip(batch["attention_mask"].sum(1).tolist(), words, strict=True)):
            labels[row, length - len(ids) : length] = torch.tensor(ids)
        return {**batch, "labels": labels}

    def _captions(self, rows: list[dict]) -> dict:
        words = self.processor.tokenizer  # the tiny one; OPT's own begins sentences by itself
        texts = [words.bos_token + row["references"][0] + words.eos_token for row in rows]
        pictures = [_picture(row) for row in rows]
        batch = self.processor(images=pictures, text=texts, padding=True, padding_side="right", return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :33] = -100  # the image's tokens and the first of the sentence
        return {**batch, "labels": labels}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def _config(what: str) -> TrainConfig:
    return TrainConfig(batch_size=BATCH[what])


def _picture(row: dict) -> Image.Image:
    image = row["image"]
    return Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]).convert("RGB")


# ---- ours alone


def growth() -> str:
    # Image after image: of whatever number of rows, as many are about one image, and are packed behind one copy of it.
    rows = vlm_data.open("easy-vqa", split="train")
    sizes = {
        "1,000": rows.select(range(1000)),
        "10,000": rows.select(range(10_000)),
        "100,000": datasets.concatenate_datasets([rows] * 3).select(range(100_000)),
    }
    engines, found = {}, {name: [] for name in sizes}
    for name, part in sizes.items():
        engines[name] = Engine(vlm_models.load("tiny-qwen2-vl"), part, 32)
        engines[name].encode()
        engines[name].go(10)
    high_water.reset()
    held = high_water.mark()
    for _ in range(3 * ROUNDS):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.go(20)
            found[name].append((time.perf_counter() - started) / 640)
    base = found["1,000"]
    shares = {name: statistics.median(a / b for a, b in zip(own, base, strict=True)) for name, own in found.items()}
    times = ", ".join(f"{name} rows {share:.3f}" for name, share in shares.items())
    return (
        f"growth: time of a row, to that with 1,000: {times}; {statistics.median(base) * 1e3:.2f} ms; memory grew by "
        f"{(high_water.mark() - held) / 2**20:.0f} MiB in {9 * ROUNDS * 20} steps"
    )


def overhead() -> str:
    engine = Engine(vlm_models.load("tiny-qwen2-vl"), vlm_data.open("easy-vqa", split="train").select(range(1000)), 32)
    spent, step = [], engine.optimizer.step

    def timed(*args: Any) -> None:
        started = time.perf_counter()
        step(*args)
        spent.append(time.perf_counter() - started)

    engine.optimizer.step = timed
    engine.encode()
    engine.go(10)
    spent.clear()
    steps = [next(engine.running) for _ in range(100)]
    data = statistics.median(one.data_seconds for one in steps)
    rest = statistics.median(
        one.seconds - one.data_seconds - one.compute_seconds - own for one, own in zip(steps, spent, strict=True)
    )
    compute = statistics.median(one.compute_seconds for one in steps)
    return (
        f"overhead: {rest * 1e3:.2f} ms a step outside data ({data * 1e3:.1f}), forward and backward "
        f"({compute * 1e3:.1f}) and optimizer ({statistics.median(spent) * 1e3:.1f})"
    )


def worker(who: str, what: str) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print
    own = {"ours": Ours, "theirs": Theirs}[who](what) if what else None
    for line in sys.stdin:
        requests = {
            "go": lambda: {"growth": growth, "overhead": overhead}[who](),
            "first epoch": lambda: own.first(),
            "round": lambda: own.round(),
            "memory": lambda: high_water.mark() - own.loaded,
        }
        print(json.dumps(requests[line.strip()]()), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:4])
    else:
        main(sys.argv[1:])
