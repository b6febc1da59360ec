"""What the commands share: the folder of a run, its adapters on a model, names for the shell to complete.

Nothing heavy is imported here: `vlm_runs.adapters` imports torch, `vlm_runs.completion` answers the shell.
"""

from vlm_runs.errors import RunError
from vlm_runs.run import Run, read_run

__all__ = ["Run", "RunError", "read_run"]
