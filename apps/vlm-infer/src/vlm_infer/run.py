"""The model of a run: its base, with the adapter that was trained."""

import json
from pathlib import Path

import transformers

import peft_methods
import vlm_models
from vlm_infer.errors import InferError


def load_run(run: Path, device: str) -> vlm_models.VLM:
    """Load base and adapter as they were trained. Raises `InferError` for a folder that is no finished run."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        config = record["config"]
        options = config["model"], config["quantization"], device, config["dtype"], config.get("revision")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InferError(f"--run {run}: run.json is not one that vlm-train wrote") from error
    if not (run / "adapter").is_dir():
        raise InferError(f"--run {run} has no adapter: its training is {record['status']}; train again")
    vlm = vlm_models.load(*options)
    peft_methods.load(vlm.model, run / "adapter")
    return vlm.eval()
