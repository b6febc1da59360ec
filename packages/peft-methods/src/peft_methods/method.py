"""What a method is: options, from which it makes its parts for a model."""

from torch import nn

from .tree import Part


class Method:
    """Base of the methods, which are frozen dataclasses of their options."""

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """A part for every module the method goes on, by the module's name; the model is left as it is.

        Raises TargetError, or AdapterError where the model cannot carry the method.
        """
        raise NotImplementedError

    def bind(self, attachment, optimizer, scaler) -> None:
        """Take part in the optimizer's steps, if the method has anything to do there."""

    def loss_terms(self, attachment, count) -> None:
        """See `Attachment.loss_terms`."""
