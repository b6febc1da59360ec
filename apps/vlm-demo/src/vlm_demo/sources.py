"""What the page offers: runs, plain models, and examples from the runs' validation rows."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_demo.errors import DemoError
from vlm_runs import RunError, read_run
from vlm_runs.run import MAX_IMAGE_TOKENS

EXAMPLES = 8


@dataclass(frozen=True)
class Source:
    """A model to load, by the options of `vlm_models.load`, with the folder of its adapter if it has one.

    max_image_tokens: pictures that would take more are shrunk, as in training, for models that take any size.
    """

    name: str
    model: str
    quantization: str = "none"
    dtype: str = "auto"
    revision: str | None = None
    max_image_tokens: int = MAX_IMAGE_TOKENS
    adapter: Path | None = None

    @property
    def base(self) -> tuple[str, str, str, str | None, int]:
        """What it has in common with others that can share its weights."""
        return self.model, self.quantization, self.dtype, self.revision, self.max_image_tokens


def read_sources(runs: list[Path], models: list[str]) -> list[Source]:
    """A source for each run and each plain model, with names of their own. Raises `DemoError`."""
    if not runs and not models:
        raise DemoError("give a trained run, --run DIR, or a model, --model NAME; both can be given several times")
    sources = [_of_run(run) for run in runs]
    bases, own = {source.model: source for source in sources}, {source.name for source in sources}
    for model in models:  # a run's own base is loaded as there, so that they share their weights
        base = bases.get(model, Source(model, model))
        name = f"{model} (base)" if model in bases or model in own else model
        sources.append(replace(base, name=name, adapter=None))
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DemoError(f"{twice[0]} is given twice; leave one out, or rename its folder")
    return sources


def _of_run(folder: Path) -> Source:
    try:
        run = read_run(folder)
    except RunError as error:
        raise DemoError(f"--run {error}") from error
    name = folder.resolve().name
    return Source(name, run.model, run.quantization, run.dtype, run.revision, run.max_image_tokens, run.adapter)


def read_examples(runs: list[Path]) -> list[tuple[str, str]]:
    """Pictures and questions from the runs' validation rows: of pictures that are files, one question each."""
    found: dict[str, str] = {}
    for run in runs:
        file = run / "predictions.jsonl"
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines() if file.is_file() else []):
            if isinstance(image := row.get("image"), str) and Path(image).is_file():
                found.setdefault(str(Path(image).resolve()), row.get("prompt") or "")
            if len(found) == EXAMPLES:
                break
    return list(found.items())


def row_of(image: str, question: str) -> dict[str, Any]:
    """A row of vlm-data: a caption is asked for where there is no question."""
    picture = {"path": image, "bytes": None}
    return {"id": "0", "image": picture, "prompt": question.strip() or None, "references": [], "source": "the picture"}
