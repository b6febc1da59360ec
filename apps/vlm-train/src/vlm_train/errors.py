"""What a user can mend."""


class ConfigError(ValueError):
    """An option has a value that cannot be used; the message names the option and the fix."""


class TrainError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""
