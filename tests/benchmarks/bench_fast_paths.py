"""The figures of vlm-models' README: a training step beside Hugging Face PEFT with transformers' loss, interleaved.

    uv run python tests/benchmarks/bench_fast_paths.py [blip2 qwen2-vl vision generation memory kept load products]

Models have the shapes of BLIP-2 (about 100 M parameters) and Qwen2-VL with random weights; LoRA of rank 16 is on all
linear layers of the language part, batches and seeds are the same. What is printed is the median over the rounds of
(time of PEFT's steps / time of ours in the same round), and how far losses are apart after some steps. Run it on an
otherwise idle machine.
"""

import copy
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import high_water
import peft
import torch
import transformers
from torch import nn

import peft_methods as pm
import vlm_models
from vlm_models import lean, linear
from vlm_models.families import Blip2, Chat

RANK, QUESTIONS, ROUNDS, STEPS, LOSSES = 16, 8, 5, 2, 50
OPT_LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
QWEN_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Batch = dict[str, torch.Tensor]


def blip2_model() -> nn.Module:
    """ViT 12 x 384 at 224 px, 32 queries, OPT 12 x 512 with 50,304 words."""
    width = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    vision = transformers.Blip2VisionConfig(**width, num_hidden_layers=12, image_size=224, initializer_range=0.02)
    qformer = transformers.Blip2QFormerConfig(
        **width, num_hidden_layers=6, encoder_hidden_size=384, vocab_size=100,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    text = transformers.OPTConfig(
        hidden_size=512, num_hidden_layers=12, ffn_dim=2048, num_attention_heads=8, word_embed_proj_dim=512,
        vocab_size=50304, dropout=0.0,
    )  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=32, image_token_index=50303
    )
    torch.manual_seed(0)
    return transformers.Blip2ForConditionalGeneration(config).train()


def blip2_batch(rows: int = 8, caption: int = 12, supervised: int = 12) -> Batch:
    """An image and its caption in each row, of which the last tokens are supervised."""
    torch.manual_seed(1)
    ids = torch.cat(
        [torch.full((rows, 32), 50303), torch.full((rows, 1), 2), torch.randint(5, 50000, (rows, caption))], 1
    )
    labels = ids.clone()
    labels[:, :-supervised] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": torch.randn(rows, 3, 224, 224),
    }


def ragged(batch: Batch, median: float = 12.0, spread: float = 0.8) -> Batch:
    """The batch with captions cut to log-normal lengths, and padding behind them."""
    before, length = 33, batch["input_ids"].shape[1]
    torch.manual_seed(3)
    captions = torch.empty(len(batch["input_ids"])).log_normal_(math.log(median), spread).clamp(2, length - before)
    real = torch.arange(length) < before + captions.long()[:, None]
    its = {"input_ids": batch["input_ids"].where(real, 1), "labels": batch["labels"].where(real, -100)}
    return {**batch, **its, "attention_mask": real.long()}


def qwen_model(vocabulary: int = 32000, layers: int = 8, width: int = 384) -> nn.Module:
    text = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 1024, "num_hidden_layers": layers,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {"depth": 8, "embed_dim": 256, "hidden_size": width, "num_heads": 4, "mlp_ratio": 4, "patch_size": 14}
    special = dict(
        zip(
            ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id"),
            range(31990, 31994),
            strict=True,
        )
    )
    torch.manual_seed(0)
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **special)
    return transformers.Qwen2VLForConditionalGeneration(config).train()


def qwen_batch(images: int, questions: int, answer: int = 2, words: int = 31000, side: int = 16) -> Batch:
    """`questions` of 14 tokens about each image of side² patches, four of which are a token.

    Image inputs are those of the distinct images.
    """
    torch.manual_seed(1)
    rows = images * questions
    before = torch.tensor([5, 6, 7, 31991] + [31990] * (side // 2) ** 2 + [31992]).expand(rows, -1)
    ids = torch.cat([before, torch.randint(10, words, (rows, 14 + answer))], 1)
    labels = ids.clone()
    labels[:, : labels.shape[1] - answer] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 31990).long(),
        "labels": labels,
        "pixel_values": torch.randn(images * side**2, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, side, side]]).expand(images, -1),
        "image_index": torch.arange(images).repeat_interleave(questions),
    }


def by_rows(batch: Batch) -> Batch:
    """The batch as transformers takes it: every row with an image of its own."""
    index = batch.get("image_index", torch.arange(len(batch["input_ids"])))
    plain = {name: value for name, value in batch.items() if name not in ("image_index", "features")}
    if "image_grid_thw" in batch:
        pixels = batch["pixel_values"].split(batch["image_grid_thw"].prod(-1).tolist())
        plain["pixel_values"] = torch.cat([pixels[i] for i in index.tolist()])
        plain["image_grid_thw"] = batch["image_grid_thw"][index]
    return plain


def theirs(model: nn.Module, targets: str, batch: Batch) -> Callable[[], float]:
    """A step of PEFT with transformers' loss."""
    torch.manual_seed(2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets))
    plain = by_rows(batch)
    return stepper(adapted, lambda: adapted(**plain).loss)


def ours(vlm: vlm_models.VLM, targets: str, batch: Batch, start: nn.Module) -> Callable[[], float]:
    """A step of ours, from the factors of PEFT's model `start`."""
    attachment = pm.attach(vlm.model, pm.LoRA(rank=RANK, alpha=2 * RANK, targets=f"re:{targets}"))
    factors = {name: value for name, value in start.named_parameters() if "lora_A" in name}
    with torch.no_grad():
        for path, part in attachment.modules.items():
            part.lora_A.copy_(factors[f"base_model.model.{path}.lora_A.default.weight"])
    if not vlm.trains_vision:
        with torch.no_grad():
            batch = {**batch, "features": vlm.encode_images(batch)}

    def loss() -> torch.Tensor:
        total, tokens = vlm(batch)
        return total / tokens

    return stepper(vlm, loss)


def stepper(model: nn.Module, loss_of: Callable[[], torch.Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    step.model = model
    return step


def compare(title: str, model: nn.Module, family: type, batch: Batch, targets: str, losses: int = LOSSES) -> None:
    vlm = family(copy.deepcopy(model), None, title).train()
    contestants = {"peft": theirs(model, targets, batch)}
    batch = {"image_index": torch.arange(len(batch["input_ids"])), **batch}
    contestants["ours"] = ours(vlm, targets, batch, contestants["peft"].model)
    apart = []
    for _ in range(losses):
        theirs_, ours_ = (step() for step in contestants.values())
        apart.append(abs(theirs_ - ours_) / abs(theirs_))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, step in contestants.items():
            step()  # after the other's: memory and caches as they are within a run
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            times[name].append((time.perf_counter() - started) / STEPS)
    ratio = statistics.median(a / b for a, b in zip(times["peft"], times["ours"], strict=True))
    seconds = ", ".join(f"{name} {statistics.median(its):.3f} s" for name, its in times.items())
    print(
        f"{title:28}{ratio:6.2f} x   {seconds}; losses of {losses} steps apart by {statistics.mean(apart):.1e}, "
        f"at most {max(apart):.1e}",
        flush=True,
    )


def blip2() -> None:
    language = rf"language_model.*\.({'|'.join(OPT_LINEAR)})"
    compare("BLIP-2, captions", blip2_model(), Blip2, blip2_batch(), language)
    compare("BLIP-2, answers of 3 tokens", blip2_model(), Blip2, blip2_batch(supervised=3), language, losses=5)
    captions = ragged(blip2_batch(rows=16, caption=60, supervised=60))
    compare("BLIP-2, captions of 2 to 60", blip2_model(), Blip2, captions, language, losses=5)


def qwen2_vl() -> None:
    language = rf"model\.language_model.*\.({'|'.join(QWEN_LINEAR)})"
    compare("Qwen2-VL, 8 questions", qwen_model(), Chat, qwen_batch(2, QUESTIONS), language)


def vision() -> None:
    both = rf"(language_model.*\.({'|'.join(OPT_LINEAR)})|vision_model.*\.(qkv|projection|fc1|fc2))"
    compare("BLIP-2, vision trained too", blip2_model(), Blip2, blip2_batch(), both, losses=5)
    both = rf"(model\.language_model.*\.({'|'.join(QWEN_LINEAR)})|model\.visual\.blocks.*\.(qkv|proj|fc1|fc2))"
    compare("Qwen2-VL, vision trained too", qwen_model(), Chat, qwen_batch(2, QUESTIONS), both, losses=5)


def generation() -> None:
    """A batch of 4 images with 8 questions each, left-padded prompts of 79 tokens, 8 new tokens a row, greedy."""
    model, batch = qwen_model().eval(), qwen_batch(4, QUESTIONS, answer=0)
    tokenizer = SimpleNamespace(eos_token_id=31999, pad_token_id=0, batch_decode=lambda ids, **_: [""] * len(ids))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    vlm = Chat(copy.deepcopy(model), SimpleNamespace(tokenizer=tokenizer), "generation").eval()
    plain = {name: value for name, value in by_rows(batch).items() if name != "labels"}
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    runs = {
        "transformers": lambda: model.generate(**plain, **options)[:, plain["input_ids"].shape[1] :].tolist(),
        "ours": lambda: [answer.token_ids for answer in vlm.generate(batch, 8)],
    }
    texts = {name: run() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
    seconds = ", ".join(f"{name} {statistics.median(its):.3f} s" for name, its in times.items())
    same = "same" if texts["ours"] == texts["transformers"] else "OTHER"
    print(f"{'answers to 8 questions':28}{ratio:6.2f} x   {seconds}; {same} tokens", flush=True)


def memory() -> None:
    """Peak memory of a step beside that of the loaded model, each in a process of its own, on Linux."""
    found = {}
    for who in ("peft", "ours"):
        output = subprocess.run([sys.executable, __file__, f"memory-{who}"], capture_output=True, text=True, check=True)
        found[who] = int(output.stdout.split()[-1])
    sizes = ", ".join(f"{who} {size / 2**20:.0f} MiB" for who, size in found.items())
    print(f"{'memory, 151,936 words':28}{found['peft'] / found['ours']:6.2f} x   {sizes}")


def memory_of(who: str) -> None:
    torch.set_num_threads(1)
    language = rf"model\.language_model.*\.({'|'.join(QWEN_LINEAR)})"
    model, batch = qwen_model(151936, layers=4), qwen_batch(2, 4, answer=12)
    if who == "peft":
        step = theirs(model, language, batch)
    else:
        start = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=RANK, target_modules=language))
        step = ours(Chat(model, None, "memory").train(), language, batch, start)
        del start
    before = high_water.reset()
    step()
    print(high_water.mark() - before)


def kept() -> None:
    """What a layer of Qwen2-VL-2B in 16 bits, LoRA on all of it, keeps of a token until it goes backward, in KB."""
    text = {"intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2, "hidden_size": 1536}
    tokens, found = 256, {}
    ids, mask = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, 1, tokens, tokens).bfloat16()
    for who in ("peft", "ours"):
        sizes = []
        for layers in (1, 2):
            model = transformers.Qwen2Model(
                transformers.Qwen2Config(**text, num_hidden_layers=layers, vocab_size=8)
            ).bfloat16()
            if who == "ours":
                lean.keep_less(model)
                pm.attach(model, pm.LoRA(rank=RANK, targets=f"re:.*({'|'.join(QWEN_LINEAR)})"))
            else:
                model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules=QWEN_LINEAR))
            weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
            storages: dict[int, int] = {}

            def keep(tensor: torch.Tensor, weights: set[int] = weights, storages: dict = storages) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    storages[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                model(input_ids=ids, attention_mask=mask, use_cache=False)
            sizes.append(sum(storages.values()))
        found[who] = (sizes[1] - sizes[0]) / tokens / 1e3
    sizes = ", ".join(f"{who} {size:.0f} KB" for who, size in found.items())
    print(f"{'kept by a layer for a token':28}{found['peft'] / found['ours']:6.2f} x   {sizes}")


def load() -> None:
    for name in vlm_models.TINY:
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            vlm_models.load(name)
            seconds.append(time.perf_counter() - started)
        print(f"load {name:23}{statistics.median(seconds):6.2f} s")


def products() -> None:
    """Of 1,408 rows with weights [2048, 512] and [512, 2048], by MKL and as the models' layers make them."""
    for inputs, outputs in ((512, 2048), (2048, 512)):
        x, W = torch.randn(1408, inputs), torch.randn(outputs, inputs)
        speeds = {}
        for name, multiply in (("torch", nn.functional.linear), ("ours", linear.multiply)):
            seconds = []
            for _ in range(20 * ROUNDS):
                started = time.perf_counter()
                multiply(x, W)
                seconds.append(time.perf_counter() - started)
            speeds[name] = 2e-9 * x.numel() * outputs / statistics.median(seconds)
        found = ", ".join(f"{name} {speed:.0f} GFLOP/s" for name, speed in speeds.items())
        print(f"product {inputs} -> {outputs:<13}{speeds['ours'] / speeds['torch']:6.2f} x   {found}")


SECTIONS = {
    "blip2": blip2,
    "qwen2-vl": qwen2_vl,
    "vision": vision,
    "generation": generation,
    "memory": memory,
    "kept": kept,
    "load": load,
    "products": products,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if len(sys.argv) == 2 and sys.argv[1].startswith("memory-"):
        memory_of(sys.argv[1].removeprefix("memory-"))
        sys.exit()
    print(f"torch {torch.__version__}, peft {peft.__version__}, {torch.get_num_threads()} threads")
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
