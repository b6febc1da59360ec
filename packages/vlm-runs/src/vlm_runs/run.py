"""The folder of a run, as vlm-train leaves it: what other commands need of its run.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_runs.errors import RunError

ADAPTER_CONFIG = "adapter_config.json"
MAX_IMAGE_TOKENS = 1024


@dataclass(frozen=True)
class Run:
    """A run with an adapter.

    model, quantization, dtype, revision: options of `vlm_models.load`, as the run was trained. max_image_tokens: images
    that would take more were shrunk, for models that take images of any size. record: all of run.json.
    """

    folder: Path
    model: str
    quantization: str
    dtype: str
    revision: str | None
    max_image_tokens: int
    record: dict[str, Any]

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


def read_run(folder: Path) -> Run:
    """What the run in a folder used. Raises `RunError`, whose message begins with the folder."""
    file = folder / "run.json"
    if not file.is_file():
        raise RunError(f"{folder} is no run: it holds no run.json; give a folder that vlm-train wrote")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        config = record["config"]
        run = Run(
            folder,
            config["model"],
            config["quantization"],
            config["dtype"],
            config.get("revision"),
            config.get("max_image_tokens", MAX_IMAGE_TOKENS),
            record,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder}: run.json is not one that vlm-train wrote") from error
    if not (run.adapter / ADAPTER_CONFIG).is_file():
        raise RunError(f"{folder} has no adapter: its training is {record.get('status')}; train again")
    return run
