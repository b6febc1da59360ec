"""Where a prefix starts: random, or as keys and values of real tokens, by the loss that the model has with each.

Real words are the better beginning where a model has to learn a task (Li and Liang, arXiv 2101.00190). The first tokens
of a row may as well be those of its image, which mislead a model that knows the task already. Over 100 steps, the start
with the lower loss was the better one on all four pairs of tiny model and data that were tried.
"""

import torch
from datasets import Dataset

import peft_methods as pm
from vlm_data import Collator
from vlm_models import VLM

ROWS = 64  # that the loss is measured on, in passes of BATCH
BATCH = 16


@torch.no_grad()
def start_prefix(attached: object, vlm: VLM, collate: Collator, rows: Dataset) -> str | None:
    """Let a prefix start where the loss is lower; returns the line to show, None for other methods."""
    if not isinstance(attached, pm.Attachment) or not isinstance(attached.method, pm.Prefix):
        return None
    sample = rows.shuffle(seed=0).select(range(min(ROWS, len(rows)))).to_list()
    batches = [vlm.to_device(collate(sample[start : start + BATCH])) for start in range(0, len(sample), BATCH)]
    features = vlm.encode_images(batches[0])
    random = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    loss = _loss(vlm, batches)
    try:
        pm.initialize_prefix(attached, run=lambda: vlm.hidden_states(features, batches[0]))
    except pm.AdapterError as error:
        return f"the prefix starts random: {error}"
    loss_as_tokens = _loss(vlm, batches)
    if loss_as_tokens < loss:
        return f"the prefix starts as first tokens of a training row: loss {loss_as_tokens:.3f}, random {loss:.3f}"
    attached.load_state_dict(random)
    return f"the prefix starts random: loss {loss:.3f}, as first tokens of a training row {loss_as_tokens:.3f}"


def _loss(vlm: VLM, batches: list[dict]) -> float:
    """In nats per token."""
    found = [vlm(batch) for batch in batches]
    return (sum(loss for loss, _ in found) / sum(tokens for _, tokens in found)).item()
