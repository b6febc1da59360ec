"""METEOR 1.5 (Denkowski and Lavie, 2014) by its authors' Java program, as the COCO caption tools call it.

The program aligns a text with each reference by exact words, stems, synonyms and paraphrases, and turns the counts of
an alignment into a score. The counts of many rows add up, and the score of the sums is the corpus score.
"""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import numpy as np

from vlm_eval.rows import check_rows
from vlm_eval.score import Score, bootstrap_interval, signature
from vlm_eval.tokenize import tokenize

MAX_WORDS = 512  # of a text: the program's alignment grows with the square, and stops for want of memory at thousands


def meteor(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Score:
    """Corpus METEOR, 0 to 1, with the English parameters; words by `tokenize.py`, of a text its first 512.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.

    Returns:
        A score with `value` that of the corpus and `per_sample` that of each row alone; no further details.

    Raises:
        RuntimeError: Java or the program is absent.
        ValueError: see `rows.check_rows`.
    """
    predictions, references = check_rows(predictions, references)
    with _Program() as program:
        # Of references that are equally good the first one counts, so they are sorted.
        counts = [
            program.counts(_words(p), sorted(map(_words, row))) for p, row in zip(predictions, references, strict=True)
        ]
        per_sample, value = program.scores(counts)
        return Score(
            value=value,
            per_sample=per_sample,
            interval=bootstrap_interval(
                np.array(counts), lambda sums: np.array(program.scores([list(row) for row in sums])[0])
            ),
            signature=signature("meteor", references, variant="1.5", lang="en", tok="ptb+norm", words=MAX_WORDS),
            details={},
        )


def _words(text: str) -> str:
    return " ".join(" ".join(tokenize(text)).split()[:MAX_WORDS])


class _Program:
    """The running Java program: a line of text goes in, a line of numbers comes out."""

    def __init__(self):
        java, package = shutil.which("java"), find_spec("pycocoevalcap")
        if java is None:
            raise RuntimeError("METEOR needs Java: install a Java runtime, e.g. default-jre-headless, on the PATH")
        if package is None:
            raise RuntimeError("METEOR's program is not installed: pip install 'vlm-eval[meteor]'")
        jar = Path(package.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"
        command = [java, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )

    def __enter__(self) -> "_Program":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def counts(self, prediction: str, references: list[str]) -> list[float]:
        """The 23 counts of the best alignment of a row."""
        self._send(f"SCORE ||| {' ||| '.join(references)} ||| {prediction}")
        return [float(number) for number in self._receive().split()]

    def scores(self, counts: list[list[float]]) -> tuple[list[float], float]:
        """The score of each vector of counts, and that of their sum."""
        self._send(" ||| ".join(["EVAL", *(" ".join(map(str, row)) for row in counts)]))
        return [float(self._receive()) for _ in counts], float(self._receive())

    def _send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _receive(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("METEOR's program stopped: run `java -version`, and give it 2 GB of memory")
        return line
