"""What a run trains, put on a model: one method, two of them on two parts, or one of Hugging Face PEFT."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import peft_methods as pm
from vlm_models import VLM
from vlm_runs.adapters import VISION
from vlm_train.adapting.methods import further_options, method_of, vision_method_of
from vlm_train.errors import ConfigError
from vlm_train.options.checks import PARTS
from vlm_train.options.config import TrainConfig


class Attached(Protocol):
    """What training asks of the trained parameters: a part of `peft_methods.Attachment`."""

    trainable: int
    total: int

    def parameters(self) -> list[nn.Parameter]: ...
    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]: ...
    def bind(self, optimizer: torch.optim.Optimizer) -> None: ...
    def loss_terms(self, count: float | Tensor | None) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def save(self, folder: str | PathLike, base_model: str | None = None) -> None: ...
    def disabled(self) -> AbstractContextManager[None]: ...


def check_methods(config: TrainConfig) -> None:
    """Raise ConfigError for options of methods that can be refused without a model."""
    if config.method == "peft":
        from vlm_train.adapting.peft_adapter import read_peft_config

        read_peft_config(config)
    else:
        further_options(config)


def attach(config: TrainConfig, vlm: VLM) -> Attached:
    """Put the configured methods on the model, whose other parameters are frozen."""
    if config.method == "peft":
        from vlm_train.adapting.peft_adapter import PeftAttachment  # an extra

        return PeftAttachment(config, vlm)
    first = _put(vlm, method_of(config, vlm), "--targets", config.targets, config.method)
    vision = vision_method_of(config, vlm)
    if vision is None:
        return first
    return Both(first, _put(vlm, vision, "--vision-method", VISION, config.vision_method))


def count_trained(config: TrainConfig, outline: VLM) -> int | None:
    """How many parameters of a model a run will train, told by one without weights; None where that cannot be told.

    Raises what `attach` raises: what makes no sense is refused before a model is loaded.
    """
    try:
        return attach(config, outline).trainable
    except (NotImplementedError, RuntimeError):  # some kinds of PEFT begin with numbers out of the weights
        return None


def _put(vlm: VLM, method: pm.Method, option: str, targets: str, name: str) -> pm.Attachment:
    try:
        return pm.attach(vlm.model, method)
    except pm.TargetError as error:
        if targets not in PARTS:  # a user's own names, which the error is about
            raise
        raise ConfigError(
            f"{option}: {name} finds nothing to train in the {targets} part of {vlm.name}; choose another one"
        ) from error


def rounding_note(attached: Attached) -> str | None:
    """What to know of weights of the model itself that are trained in 16 bits; adapters are in 32 beside such."""
    dtypes = {parameter.dtype for parameter in attached.parameters() if parameter.dtype.itemsize < 4}
    if not dtypes:
        return None
    named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return f"the trained weights are in {named}, where steps that are small beside them are lost; see --dtype float32"


class Both:
    """An attachment of a model and one of its vision part, trained as one.

    Two methods have no file format in common, so there are two adapters: `FOLDER` and `FOLDER/vision`, to be loaded one
    after the other.
    """

    def __init__(self, first: pm.Attachment, vision: pm.Attachment):
        self.first, self.vision = first, vision.requires_grad_()
        first.requires_grad_()  # attaching the second has frozen it

    @property
    def trainable(self) -> int:
        return self.first.trainable + self.vision.trainable

    @property
    def total(self) -> int:
        # The second has counted the model with the first on it.
        return self.vision.total

    def parameters(self) -> list[nn.Parameter]:
        return self.first.parameters() + self.vision.parameters()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return self.first.parameter_groups(learning_rate) + self.vision.parameter_groups(learning_rate)

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        self.first.bind(optimizer)
        self.vision.bind(optimizer)

    def loss_terms(self, count: float | Tensor | None) -> None:
        self.first.loss_terms(count)
        self.vision.loss_terms(count)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of both; those of the second begin with `vision:`."""
        vision = {f"{VISION}:{name}": tensor for name, tensor in self.vision.state_dict().items()}
        return self.first.state_dict() | vision

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        prefix = f"{VISION}:"
        self.first.load_state_dict({name: one for name, one in state.items() if not name.startswith(prefix)})
        self.vision.load_state_dict(
            {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
        )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the base model."""
        with self.vision.disabled(), self.first.disabled():
            yield

    def save(self, folder: str | PathLike, base_model: str | None = None) -> None:
        self.first.save(folder, base_model)
        self.vision.save(Path(folder) / VISION, base_model)
