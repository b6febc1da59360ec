"""Images a second of one core's time, from files to a training batch, beside the transformers processor alone.

    uv run python tests/benchmarks/bench_collators.py

Both decode the same 96 photographs (JPEG, 640 x 480) and prepare them as the family's processor does; the collator also
writes prompt and answer, labels, masks and padding. What is printed is the median over rounds in turn, and their ratio:
0.9 is what is asked for.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import SizeDict

import vlm_data
import vlm_models

IMAGES, BATCH, ROUNDS = 96, 16, 7


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = photographs(Path(folder))
        for name in vlm_models.TINY:
            vlm = vlm_models.load(name, device="cpu")
            if name == "tiny-qwen2-vl":  # as its large siblings: photographs keep their size
                vlm.processor.image_processor.size = SizeDict(shortest_edge=3136, longest_edge=1024 * 256)
            collate = vlm_data.collator(vlm.processor, vlm.family)
            ours, theirs = [], []
            for _ in range(ROUNDS):
                theirs.append(seconds(lambda part, of=vlm: processed(of, part), rows))
                ours.append(seconds(collate, rows))
            ratio = statistics.median(one / other for one, other in zip(theirs, ours, strict=True))
            rates = [IMAGES / statistics.median(times) for times in (ours, theirs)]
            print(f"{name:15} collator {rates[0]:6.1f} images/s, processor {rates[1]:6.1f} images/s, ratio {ratio:.2f}")


def photographs(folder: Path) -> list[dict]:
    """Rows about pictures with gradients, edges and noise, of which a JPEG is as large as of a photograph."""
    random, rows = np.random.default_rng(0), []
    for number in range(IMAGES):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(noisy).save(path, quality=85)
        image = {"path": str(path), "bytes": None}
        texts = {"prompt": f"what is number {number}?", "references": ["a picture"]}
        rows.append({"id": str(number), "image": image, "source": str(number), **texts})
    return rows


def processed(vlm: vlm_models.VLM, rows: list[dict]) -> None:
    """What the family's own processor makes of the same rows."""
    images = [Image.open(row["image"]["path"]).convert("RGB") for row in rows]
    texts = [row["prompt"] for row in rows]
    if vlm.family == "chat":
        texts = [f"{vlm.processor.image_token} {text}" for text in texts]
    if vlm.family == "encoder_decoder":  # it has no processor for both
        vlm.processor.image_processor(images=images, return_tensors="pt")
        vlm.processor.tokenizer(texts)
    else:
        vlm.processor(images=images, text=texts, return_tensors="pt", padding=True)


def seconds(prepare, rows: list[dict]) -> float:
    started = time.process_time()
    for start in range(0, len(rows), BATCH):
        prepare(rows[start : start + BATCH])
    return time.process_time() - started


if __name__ == "__main__":
    main()
