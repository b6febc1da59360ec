"""BERTScore (Zhang et al., 2020): greedy matching of token embeddings, by the `bert-score` package.

    P = mean over predicted tokens of the best cosine with a reference token, R the other way round, F = 2PR / (P + R)

With transformers 5 the package fails on empty texts and on tokenizers that do not know the model's maximum length, and
the blank it asks for before the first word of a RoBERTa or GPT-2 input is silently left out. Here is what avoids that.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vlm_eval.rows import check_rows
from vlm_eval.score import Score, mean_score, signature


def bert_score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    model: str,
    num_layers: int | None = None,
    idf: bool = False,
    device: str = "cpu",
) -> Score:
    """Mean BERTScore F over rows, not rescaled. Of several references, the best P, R and F count, each by itself.

    Args:
        predictions: n texts. An empty text, here or among the references, scores 0.
        references: n texts, or n lists of texts; their order does not matter.
        model: hub id or folder of an encoder.
        num_layers: the layer whose hidden states are compared. By default the one that the package recommends for
            `model`, and the last layer of a model it does not know.
        idf: weight tokens by their rarity among the references, instead of equally.
        device: where the encoder runs.

    Returns:
        A score with F as `value` and `per_sample`; its details hold the means `precision` and `recall`.

    Raises:
        OSError: `model` is neither a folder nor a reachable hub id.
        ValueError: the model has no such layer, or "t5" in its name and is no T5, or see `rows.check_rows`.
    """
    from bert_score.utils import bert_cos_score_idf, get_idf_dict, get_model, get_tokenizer, model2layers
    from transformers import AutoConfig, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    predictions, references = check_rows(predictions, references)
    config = AutoConfig.from_pretrained(model)
    if "t5" in model and "t5" not in config.model_type:
        raise ValueError(f"model={model!r}: bert-score takes a name with 't5' in it for a T5 model; rename the folder")
    if num_layers is None:
        num_layers = model2layers.get(model, config.num_hidden_layers)
    if not 0 <= num_layers <= config.num_hidden_layers:
        raise ValueError(f"num_layers={num_layers}: {model} has layers 0 to {config.num_hidden_layers}")
    encoder, tokenizer = get_model(model, num_layers).to(device), get_tokenizer(model)
    if isinstance(tokenizer, GPT2Tokenizer | RobertaTokenizer):
        tokenizer = AutoTokenizer.from_pretrained(model, add_prefix_space=True)
    tokenizer.model_max_length = min(tokenizer.model_max_length, _max_tokens(encoder))

    pairs = [(row, p, r) for row, p in enumerate(predictions) for r in references[row]]
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

    precision, recall, f = best.T
    return mean_score(
        f.tolist(),
        signature("bert_score", references, model=model, layer=num_layers, idf="yes" if idf else "no", rescale="no"),
        {"precision": float(precision.mean()), "recall": float(recall.mean())},
    )


def _max_tokens(encoder) -> int:
    """Longest input, special tokens included. RoBERTa's kin start to count positions after the padding index."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding_index = getattr(table, "padding_idx", None)
    return getattr(encoder.config, "max_position_embeddings", 512) - (0 if padding_index is None else padding_index + 1)
