"""`vlm-infer` against a `transformers` pipeline: questions about easy-VQA's drawings, greedy, tiny-qwen2-vl.

    uv run python tests/benchmarks/bench_infer.py [IMAGES [QUESTIONS_PER_IMAGE [BATCH_SIZE]]]

2,000 images with 5 questions each by default, 32 rows a batch. The pipeline's time begins with its model loaded, that
of vlm-infer with its command: the model, the table, the scores and the file are in it. Each is a process of its own, on
one thread; they run in turn. Run it on an otherwise idle machine.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import vlm_data
from vlm_models import tiny_folder

MODEL, NEW_TOKENS, ROUNDS = "tiny-qwen2-vl", 16, 2


def make_table(path: Path, images: int, questions: int) -> None:
    """The first images that have so many questions, and these."""
    of_images = defaultdict(list)
    for row in vlm_data.open("easy-vqa", split="train"):
        of_images[row["image"]["path"]].append((row["prompt"], row["references"][0]))
    chosen = [item for item in of_images.items() if len(item[1]) >= questions][:images]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_name", "question", "answer"])
        writer.writerows([image, *pair] for image, pairs in chosen for pair in pairs[:questions])


def infer(table: Path, batch_size: int) -> tuple[list[str], float]:
    """Texts and seconds of vlm-infer."""
    from vlm_infer import cli

    out = table.with_suffix(".jsonl")
    options = ["--model", MODEL, "--data", table, "--image-dir", "/", "--out", out, "--overwrite", "--device", "cpu"]
    started = time.perf_counter()
    cli.app(
        [*map(str, options), "--batch-size", str(batch_size), "--max-new-tokens", str(NEW_TOKENS)],
        standalone_mode=False,
    )
    seconds = time.perf_counter() - started
    return [json.loads(line)["text"] for line in out.read_text().splitlines()], seconds


def pipeline(table: Path, batch_size: int) -> tuple[list[str], float]:
    """Texts and seconds of transformers."""
    from transformers import pipeline as make

    pipe = make("image-text-to-text", model=str(tiny_folder(MODEL)), device="cpu", batch_size=batch_size)
    pipe.tokenizer = pipe.processor.tokenizer
    pipe.tokenizer.padding_side = "left"
    with table.open(newline="") as file:
        asked = [(row["image_name"], row["question"]) for row in csv.DictReader(file)]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for image, question in asked
    ]
    started = time.perf_counter()
    said = pipe(text=chats, return_full_text=False, generate_kwargs={"max_new_tokens": NEW_TOKENS, "do_sample": False})
    seconds = time.perf_counter() - started
    return [one[0]["generated_text"].strip() for one in said], seconds


def measure(kind: str, table: Path, batch_size: int) -> dict:
    """Runs in a process of its own, for its memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--one", kind, str(table), str(batch_size)]
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(told.splitlines()[-1])


def one(kind: str, table: Path, batch_size: int) -> None:
    import high_water

    texts, seconds = {"infer": infer, "pipeline": pipeline}[kind](table, batch_size)
    print(json.dumps({"texts": texts, "seconds": seconds, "memory": high_water.mark()}))


def main(images: int = 2000, questions: int = 5, batch_size: int = 32) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "questions.csv"
        make_table(table, images, questions)
        rates = defaultdict(list)
        print("| | rows/s | peak memory |", "|---|---|---|", sep="\n", flush=True)
        for _ in range(ROUNDS):
            told = {kind: measure(kind, table, batch_size) for kind in ("infer", "pipeline")}
            for kind, result in told.items():
                rates[kind].append(len(result["texts"]) / result["seconds"])
                print(f"| {kind} | {rates[kind][-1]:.1f} | {result['memory'] / 2**30:.2f} GiB |", flush=True)
            ours, theirs = (told[kind]["texts"] for kind in ("infer", "pipeline"))
            same = sum(a == b for a, b in zip(ours, theirs, strict=True))
            print(f"{same} of {len(theirs)} answers are the same", flush=True)
    print(f"{max(rates['infer']) / max(rates['pipeline']):.1f} times the rows a second")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(*map(int, sys.argv[1:]))
