"""What is shown and written down of training's steps."""

from typing import Any

import torch

from vlm_train.engine.memory import peak_memory
from vlm_train.engine.state import State

LOG_EVERY = 10  # steps


def line_of(state: State, device: torch.device) -> dict[str, Any]:
    """A line of metrics.jsonl for the latest step. Seconds and speeds are means over the last steps, of one process."""
    step, recent = state.recent[-1], state.recent
    seconds = sum(one.seconds for one in recent)
    data, compute = (sum(getattr(one, name) for one in recent) for name in ("data_seconds", "compute_seconds"))
    return {
        "step": step.step,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "skipped_steps": state.skipped,
        "rows_per_second": sum(one.rows for one in recent) / seconds,
        "supervised_tokens_per_second": sum(one.tokens for one in recent) / seconds,
        "data_seconds": data / len(recent),
        "compute_seconds": compute / len(recent),
        "rest_seconds": (seconds - data - compute) / len(recent),
        "peak_memory_bytes": peak_memory(device),
    }


def note_of(state: State) -> str:
    """What stands beside the bar."""
    rate = sum(one.rows for one in state.recent) / sum(one.seconds for one in state.recent)
    return f"loss {state.recent[-1].loss:.3f}  {rate:.0f} rows/s"


def is_logged(step: int, steps: int) -> bool:
    return step % LOG_EVERY == 0 or step == steps
