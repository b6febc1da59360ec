"""What can go wrong when a model is read from a folder or from the Hugging Face hub, in one line each."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError

from vlm_models.errors import ModelError
from vlm_models.memory import out_of_memory_known
from vlm_models.tiny import TINY

# The cause: what to tell of it. transformers wraps them, so that causes of causes count.
REASONS = {
    GatedRepoError: "it is gated; accept its terms at https://huggingface.co/{name} and log in with `hf auth login`",
    RevisionNotFoundError: "the hub has it, but not in this revision; see https://huggingface.co/{name}/commits/main",
    RepositoryNotFoundError: "the hub has no such model, or it is private; check the name, or log in (`hf auth login`)",
    SafetensorError: "a weights file is damaged ({reason}); download or save it again",
    pickle.UnpicklingError: "its weights are a pickle that holds more than tensors, which is not loaded; ask for "
    "safetensors",
    torch.OutOfMemoryError: "the device's memory does not suffice; use quantization='nf4', or device='cpu'",
}
ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, *REASONS)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever transformers, the hub or torch raise within becomes a `ModelError` of one line."""
    try:
        with out_of_memory_known():
            yield
    except ModelError:
        raise
    except ERRORS as error:
        raise ModelError(f"cannot load {name!r}: {_reason(error, name)}") from error


def _reason(error: BaseException, name: str) -> str:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for kind, text in REASONS.items():
        for one in causes:
            if isinstance(one, kind):
                return text.format(name=name, reason=_first_line(one))
    line = _first_line(error)
    # a hub that is not reached, files that are not there
    return f"{line} Models that need no download: {', '.join(TINY)}" if isinstance(error, OSError) else line


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
