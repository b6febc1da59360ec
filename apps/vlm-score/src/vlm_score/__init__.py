"""Score predictions against references; the command is `vlm-score`."""

from vlm_score.errors import ScoreError

__all__ = ["ScoreError"]
