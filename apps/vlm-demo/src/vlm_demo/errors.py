"""The error of this app."""


class DemoError(ValueError):
    """What was asked cannot be done; the message names the option and the fix."""
