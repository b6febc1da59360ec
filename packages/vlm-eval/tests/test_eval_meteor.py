"""METEOR against the COCO tools' wrapper, and what is said where the program is absent."""

import shutil
from contextlib import nullcontext
from importlib import import_module
from random import Random

import pytest

from vlm_eval import meteor
from vlm_eval.tokenize import tokenize

WORDS = "a the dog's dogs ran running run cat kitten red crimson (left) t-shirt 1/2 is isn't . ,"
ODD = ["", "|||", "a ||| b", "\n", "SCORE ||| a", "EVAL", "日本語 🐶", "?" * 99]


def test_equal_to_the_coco_tools_for_300_rows_and_odd_texts():
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    scorer, random = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor(), Random(0)

    def text() -> str:
        # Without repetition: the program takes minutes to align many equal words.
        return " ".join(random.sample(WORDS.split(), k=random.randint(0, 7)))

    references = [[text() for _ in range(random.randint(1, 3))] for _ in range(300)] + [["a dog", odd] for odd in ODD]
    predictions = [text() for _ in range(300)] + ODD
    score = meteor(predictions, references)
    value, per_sample = scorer.compute_score(
        {i: sorted(" ".join(tokenize(text)) for text in row) for i, row in enumerate(references)},
        {i: [" ".join(tokenize(text))] for i, text in enumerate(predictions)},
    )
    assert score.value == pytest.approx(value, abs=1e-9)
    assert score.per_sample == pytest.approx(per_sample, abs=1e-9)
    assert all(0 <= row <= 1 for row in score.per_sample)
    assert score.interval[0] < score.value < score.interval[1] < score.interval[0] + 0.1
    assert meteor(predictions, [row[::-1] for row in references]) == score


def test_equal_to_the_coco_tools_on_500_corpora(monkeypatch):
    """By one running program for all of them, and without intervals, which start it 500 and run it 500,000 times."""
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    scorer, random = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor(), Random(1)
    module = import_module("vlm_eval.meteor")
    with module._Program() as program:
        monkeypatch.setattr(module, "_Program", lambda: nullcontext(program))
        monkeypatch.setattr(module, "bootstrap_interval", lambda *_: (0.0, 0.0))
        for _ in range(500):
            rows = random.randint(1, 4)
            texts = [" ".join(random.sample(WORDS.split(), k=random.randint(0, 7))) for _ in range(3 * rows)]
            predictions, references = texts[:rows], [texts[rows + 2 * i : rows + 2 * i + 2] for i in range(rows)]
            value, per_sample = scorer.compute_score(
                {i: sorted(" ".join(tokenize(text)) for text in row) for i, row in enumerate(references)},
                {i: [" ".join(tokenize(text))] for i, text in enumerate(predictions)},
            )
            score = meteor(predictions, references)
            assert [score.value, *score.per_sample] == pytest.approx([value, *per_sample], abs=1e-9)


def test_without_java_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="METEOR needs Java: install a Java runtime"):
        meteor(["a"], ["a"])


def test_without_the_program_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(import_module("vlm_eval.meteor"), "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'vlm-eval\[meteor\]'"):
        meteor(["a"], ["a"])
