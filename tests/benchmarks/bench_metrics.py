"""Seconds and peak memory of the caption and answer metrics, beside the programs whose numbers they equal.

    uv run python tests/benchmarks/bench_metrics.py [CAPTIONS]

40,000 captions with 5 references each (the size of COCO's validation set): BLEU, ROUGE-L and CIDEr with intervals,
against `pycocoevalcap`. 200,000 answers with 10 annotators each: VQA accuracy, against the challenge's loop, which
normalises each answer anew. Each line is a process of its own; run it on an otherwise idle machine.
"""

import json
import os
import subprocess
import sys
import time
from random import Random

COMMON = "a man woman dog cat on the in with of and riding holding sitting standing red blue white small large two"


def captions(rows: int) -> tuple[list[str], list[list[str]]]:
    """Captions of 8 to 14 words, half of them from a Zipf-like list of 9,000."""
    random, common = Random(0), COMMON.split()
    rare = [f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(9000)]

    def caption() -> str:
        words = [
            random.choice(common) if random.random() < 0.5 else rare[int(9000 ** random.random()) - 1]
            for _ in range(random.randint(8, 14))
        ]
        words[random.randrange(len(words))] += random.choice(["", "", "", ",", "'s", " 2", "-shaped"])
        return " ".join([*words, "outside"]).capitalize() + random.choice([".", ".", ""])

    references = [[caption() for _ in range(5)] for _ in range(rows)]
    return [" ".join(row[0].split()[:6] + row[1].split()[6:]) for row in references], references


def answers(rows: int) -> tuple[list[str], list[list[str]]]:
    """Answers of which the most frequent 3,000 make up nearly all, as in VQAv2."""
    random = Random(0)
    known = ["yes", "no", "2", "red", "a dog", "Two", "on the table.", "t-shirt", "1,000", "dont know"]
    known += [f"answer {i}" for i in range(3000)]

    def answer() -> str:
        return known[int(len(known) ** random.random()) - 1]

    references = []
    for _ in range(rows):
        usual = answer()
        references.append([usual if random.random() < 0.7 else answer() for _ in range(10)])
    return [random.choice(row) for row in references], references


def ours(rows: int) -> dict[str, float]:
    import vlm_eval

    predictions, references = captions(rows)
    started = time.perf_counter()
    scores = [metric(predictions, references) for metric in (vlm_eval.bleu, vlm_eval.rouge, vlm_eval.cider)]
    return {"seconds": time.perf_counter() - started, **{f"score {i}": score.value for i, score in enumerate(scores)}}


def coco(rows: int) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    predictions, references = captions(rows)
    started = time.perf_counter()
    results = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(predictions)})
    truth = PTBTokenizer().tokenize({i: [{"caption": text} for text in row] for i, row in enumerate(references)})
    tokenized = time.perf_counter()
    values = [scorer.compute_score(truth, results)[0] for scorer in (Bleu(4), Rouge(), Cider())]
    values[0] = values[0][-1]
    ended = time.perf_counter()
    return {
        "seconds": ended - started,
        "without Java": ended - tokenized,
        **{f"score {i}": float(value) for i, value in enumerate(values)},
    }


def ours_vqa(rows: int) -> dict[str, float]:
    import vlm_eval

    predictions, references = answers(rows)
    started = time.perf_counter()
    value = vlm_eval.vqa_accuracy(predictions, references, "official").value
    return {"seconds": time.perf_counter() - started, "score": value}


def loop_vqa(rows: int) -> dict[str, float]:
    from vlm_eval.vqa_normalize import ARTICLES, CONTRACTIONS, DIGIT_COMMA, NUMBERS, PERIOD, PUNCTUATION, clean

    def normalize(text: str) -> str:
        spaced = text
        for mark in PUNCTUATION:  # every mark, found or not, as the challenge's code does
            deleted = mark + " " in text or " " + mark in text or DIGIT_COMMA.search(text) is not None
            spaced = spaced.replace(mark, "" if deleted else " ")
        words = [NUMBERS.get(word, word) for word in PERIOD.sub("", spaced, count=32).lower().split()]
        return " ".join([CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES])

    predictions, references = answers(rows)
    started, total = time.perf_counter(), 0.0
    for prediction, row in zip(predictions, references, strict=True):
        prediction, row = clean(prediction), [clean(answer) for answer in row]
        if len(set(row)) > 1:
            row = [normalize(answer) for answer in row]
            prediction = normalize(prediction)
        turns = []
        for i in range(len(row)):
            others = [answer for j, answer in enumerate(row) if j != i]
            turns.append(min(1, sum(answer == prediction for answer in others) / 3))
        total += sum(turns) / len(turns)
    return {"seconds": time.perf_counter() - started, "score": total / rows}


def resampling(rows: int) -> dict[str, float]:
    import numpy as np

    from vlm_eval.score import mean_score

    values = np.random.default_rng(0).random(rows).tolist()
    started = time.perf_counter()
    score = mean_score(values, "x", {})
    return {"seconds": time.perf_counter() - started, "score": score.value}


def measured(name: str, rows: int) -> None:
    """One line: the function `name` in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, name, str(rows)], stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed")
    numbers = json.loads(output.splitlines()[-1])
    cells = ", ".join(f"{key} {value:.6g}" for key, value in numbers.items())
    print(f"{name} of {rows:,} rows: {cells}, peak {usage.ru_maxrss / 2**20:.2f} GiB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(globals()[sys.argv[1]](int(sys.argv[2]))))
    else:
        size = int(sys.argv[1]) if len(sys.argv) == 2 else 40_000
        for name in ("ours", "coco"):
            measured(name, size)
        for name in ("ours_vqa", "loop_vqa", "resampling"):
            measured(name, 5 * size)
