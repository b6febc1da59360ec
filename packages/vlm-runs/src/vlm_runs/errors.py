"""The one error of this package."""


class RunError(Exception):
    """A folder is no run, or the adapter in it cannot be used. The message says what to do."""
