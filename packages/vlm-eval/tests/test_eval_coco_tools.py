"""Raw captions through the COCO tools, Java's words included, and through this package: 500 corpora."""

import shutil
from random import Random

import pytest

from vlm_eval import bleu, cider, rouge

pytestmark = pytest.mark.filterwarnings("ignore:CIDEr")
WORDS = """
    A The the a man's dogs isn't cannot Red, (left) "stop" t-shirt and/or 10:30 1,000 U.S. St. Mr. 50% $5 3-year-old 1/2
    1 café :) AT&T riding sits — ... !! ; surfboard o'clock y'all #sunset
"""


def test_equal_to_the_coco_tools_on_500_corpora():
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    random = Random(0)

    def text() -> str:
        return " ".join([*random.choices(WORDS.split(), k=random.randint(0, 12)), "beach"]) + random.choice(
            [".", "", "!"]
        )

    corpora = []
    for _ in range(500):
        references = [[text() for _ in range(random.randint(1, 5))] for _ in range(random.randint(1, 6))]
        corpora.append(([random.choice([text(), random.choice(row)]) for row in references], references))

    raw = [
        (c, i, [p, *row]) for c, corpus in enumerate(corpora) for i, (p, row) in enumerate(zip(*corpus, strict=True))
    ]
    words = tokenizer.tokenize({(c, i): [{"caption": text} for text in texts] for c, i, texts in raw})
    for c, (predictions, references) in enumerate(corpora):
        results = {i: words[c, i][:1] for i in range(len(predictions))}
        truth = {i: words[c, i][1:] for i in range(len(predictions))}
        orders, rows = Bleu(4).compute_score(truth, results, verbose=0)
        score = bleu(predictions, references)
        assert [score.details[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(orders, abs=1e-9)
        assert score.per_sample == pytest.approx(rows[3], abs=1e-9)
        assert rouge(predictions, references).value == pytest.approx(Rouge().compute_score(truth, results)[0], abs=1e-9)
        assert cider(predictions, references).value == pytest.approx(Cider().compute_score(truth, results)[0], abs=1e-9)
