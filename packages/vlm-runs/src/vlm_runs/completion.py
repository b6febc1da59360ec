"""What the shell offers for the value of an option: names of models, runs, data and others.

A completer takes the beginning of a word and returns the words it could become; Typer takes it as `autocompletion`.
Where it returns none, the shell completes the names of files, and does that better (a folder without a space after it).
Nothing heavy is imported, for a person waits behind every Tab.
"""

import shlex
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

Completer = Callable[[str], list[str]]

_DATA = ("easy-vqa", "scenes")
_FORMATS = (
    *("auto", "captions-csv", "questions-csv", "images-csv", "file-names", "caption-folders", "image-folder"),
    *("coco-captions", "vqa-v2", "conversations", "json-records", "parquet", "webdataset", "datasets"),
)


def names(*choices: str) -> Completer:
    """One of these."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def listed(*choices: str) -> Completer:
    """Some of these, separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        left = [choice for choice in choices if choice not in before.split(",")]
        return [f"{before}{comma}{choice}" for choice in left if choice.startswith(last)]

    return complete


def data(incomplete: str) -> list[str]:
    """The data sets that have names, or files."""
    return _or_files(incomplete, _DATA)


def models(incomplete: str) -> list[str]:
    """The tiny models, those in the cache of the Hugging Face hub, and folders that hold one."""
    return _or_files(incomplete, (*_tiny(), *_in_hub_cache("config.json")), "config.json")


def adapters(incomplete: str) -> list[str]:
    """Adapters in the cache of the hub, and folders that hold one."""
    return _or_files(incomplete, tuple(_in_hub_cache("adapter_config.json")), "adapter_config.json")


def runs(incomplete: str) -> list[str]:
    """Folders that vlm-train wrote: in the folder that was typed, else in this one and in runs."""
    places = ("", "runs/") if "/" not in incomplete else (incomplete[: incomplete.rindex("/") + 1],)
    return [run for place in places for run in _folders_with("run.json", place) if run.startswith(incomplete)]


formats = names(*_FORMATS)
devices = names("auto", "cpu", "cuda", "mps", "xpu")
dtypes = names("auto", "float32", "bfloat16", "float16", "float64")
quantizations = names("none", "nf4", "int8", "auto")


def _or_files(incomplete: str, choices: tuple[str, ...], holding: str = "") -> list[str]:
    """The choices, and the files and folders beside; of these alone, only folders that hold a file of that name."""
    folders = _folders_with(holding, incomplete[: incomplete.rfind("/") + 1]) if holding else []
    if any(choice.startswith(incomplete) for choice in choices):
        folders += [name for name in _entries(".") if name not in folders]
    return [name for name in (*choices, *folders) if name.startswith(incomplete)]


def _entries(folder: str) -> list[str]:
    """What is in a folder and can be typed as it is called."""
    found = Path(folder).iterdir() if Path(folder).is_dir() else ()
    return sorted(path.name for path in found if path.name[0] != "." and shlex.quote(path.name) == path.name)


def _folders_with(file: str, place: str) -> list[str]:
    return [f"{place}{name}" for name in _entries(place or ".") if Path(place, name, file).is_file()]


def _tiny() -> list[str]:
    """The models that come with vlm-models, where that is installed: a folder each."""
    spec = find_spec("vlm_models")  # finds it without importing it
    places = spec.submodule_search_locations if spec else None
    return [path.parent.name for place in places or () for path in sorted(Path(place, "tiny").glob("*/config.json"))]


def _in_hub_cache(file: str) -> Iterator[str]:
    """Ids of the models in the cache, `models--owner--name`, of which this file is there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        if any(folder.glob(f"snapshots/*/{file}")):
            yield folder.name.removeprefix("models--").replace("--", "/")
