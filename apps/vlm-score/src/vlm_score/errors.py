"""The error of this app."""


class ScoreError(ValueError):
    """What was asked cannot be scored; the message names the file, field or id, and the fix."""
