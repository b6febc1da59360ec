"""The error of this package."""


class ModelError(ValueError):
    """A model that cannot be loaded or used as asked; the message says what to do instead."""
