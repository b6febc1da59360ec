"""BERTScore (Zhang et al., 2020): greedy matching of token embeddings, by the `bert-score` package.

    P = mean over predicted tokens of the best cosine with a reference token, R the other way round, F = 2PR / (P + R)

With transformers 5 the package fails on empty texts and on tokenizers that do not know the model's maximum length, and
the blank it asks for before the first word of a RoBERTa or GPT-2 input is silently left out. Here is what avoids that.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vlm_eval.embed import encoder_path, max_tokens
from vlm_eval.rows import check_rows, encodable
from vlm_eval.score import Score, mean_score, signature


def bert_score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    model: str | None = None,
    num_layers: int | None = None,
    idf: bool = False,
    rescale: bool | str = False,
    lang: str = "en",
    device: str = "cpu",
) -> Score:
    """Mean BERTScore F over rows. Of several references, the best P, R and F count, each by itself.

    Args:
        predictions: n texts. An empty text, here or among the references, scores 0, before rescaling.
        references: n texts, or n lists of texts; their order does not matter.
        model: hub id or folder of an encoder, or `"offline"`: the MiniLM that comes with the extra `offline`. By
            default the one that the package recommends for `lang`, for English roberta-large.
        num_layers: the layer whose hidden states are compared. By default the one that the package recommends for
            `model`, and the last layer of a model it does not know.
        idf: weight tokens by their rarity among the references, instead of equally.
        rescale: spread the values: (x - b) / (1 - b), where b is what unrelated texts score. True takes b from the
            package's table for `lang` and `model`; a path names a CSV of such a table, with the columns LAYER, P, R, F.
            Rescaled values can be negative.
        lang: language of the texts; chooses the default model and the table.
        device: where the encoder runs.

    Returns:
        A score with F as `value` and `per_sample`; its details hold the means `precision` and `recall`.

    Raises:
        ImportError: `"offline"` without the extra of that name.
        OSError: `model` is neither a folder nor a reachable hub id.
        ValueError: the model has no such layer, or "t5" in its name and is no T5; there is no table to rescale with; or
            see `rows.check_rows`.
    """
    from bert_score.utils import bert_cos_score_idf, get_idf_dict, get_model, get_tokenizer, lang2model, model2layers
    from transformers import AutoConfig, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    predictions, references = check_rows(predictions, references)
    name = model = lang2model[lang] if model is None else model
    model = encoder_path(model)
    try:
        config = AutoConfig.from_pretrained(model)
    except OSError as error:
        raise OSError(
            f"model={model!r} is no folder and no reachable hub id; without a network try 'offline'"
        ) from error
    if "t5" in model and "t5" not in config.model_type:
        raise ValueError(f"model={model!r}: bert-score takes a name with 't5' in it for a T5 model; rename the folder")
    if num_layers is None:
        num_layers = model2layers.get(model, config.num_hidden_layers)
    if not 0 <= num_layers <= config.num_hidden_layers:
        raise ValueError(f"num_layers={num_layers}: {model} has layers 0 to {config.num_hidden_layers}")
    baseline = _baseline(rescale, lang, name, num_layers)
    encoder, tokenizer = get_model(model, num_layers).to(device), get_tokenizer(model)
    if isinstance(tokenizer, GPT2Tokenizer | RobertaTokenizer):
        tokenizer = AutoTokenizer.from_pretrained(model, add_prefix_space=True)
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens(encoder))

    pairs = [(row, encodable(p), encodable(r)) for row, p in enumerate(predictions) for r in references[row]]
    scores = np.zeros((len(pairs), 3))
    full = [i for i, (_, p, r) in enumerate(pairs) if p.strip() and r.strip()]
    if full:
        _, candidates, targets = map(list, zip(*(pairs[i] for i in full), strict=True))
        if idf:
            weights = get_idf_dict([r for _, _, r in pairs if r.strip()], tokenizer, nthreads=0)
        else:
            weights = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
        matched = bert_cos_score_idf(encoder, targets, candidates, tokenizer, weights, device=device)
        scores[full] = np.nan_to_num(matched.double().numpy())  # 0 / 0 where all weights of a text are 0
    best = np.full((len(predictions), 3), -np.inf)
    np.maximum.at(best, [row for row, _, _ in pairs], scores)

    precision, recall, f = ((best - baseline) / (1 - baseline)).T
    choices = {"model": name, "layer": num_layers, "idf": "yes" if idf else "no"}
    choices["rescale"] = rescale if isinstance(rescale, str) else lang if rescale else "no"
    return mean_score(
        f.tolist(),
        signature("bert_score", references, **choices),
        {"precision": float(precision.mean()), "recall": float(recall.mean())},
    )


def _baseline(rescale: bool | str, lang: str, model: str, layer: int) -> np.ndarray:
    """What unrelated texts score: P, R, F; zeros leave values as they are."""
    if not rescale:
        return np.zeros(3)
    if isinstance(rescale, str):
        table = Path(rescale)
    else:
        table = Path(find_spec("bert_score").origin).parent / "rescale_baseline" / lang / f"{model}.tsv"
    if not table.is_file():
        raise ValueError(f"rescale={rescale!r}: no table for {model} in {lang!r} ({table}); give the path of one")
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if int(row["LAYER"]) == layer:
                return np.array([float(row[column]) for column in "PRF"])
    raise ValueError(f"rescale={rescale!r}: {table} has no row for layer {layer}; give num_layers or another table")
