"""`--method peft`: any configuration of Hugging Face PEFT that puts modules into a model, saved as PEFT saves it."""

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_models import VLM
from vlm_train.adapting import adalora
from vlm_train.errors import ConfigError
from vlm_train.options.checks import PARTS
from vlm_train.options.config import TrainConfig

MEMORY, STEPS = "memory:", "steps"
NOT_QUANTIZED = "PEFT cannot put this kind on quantized weights; use --quantization none, or LORA"


def read_peft_config(config: TrainConfig) -> Any:
    """The `PeftConfig` that `--peft-config` holds.

    Raises ConfigError: peft is not installed, or the file cannot be used.
    """
    # PEFT imports it, and it would warn of kernels for 4 bits on a CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, PromptLearningConfig
    except ImportError:
        raise ConfigError("--method peft: peft is not installed; pip install 'vlm-train[peft]'") from None
    file = config.peft_config
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--peft-config {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"--peft-config {file}: not JSON: {error}") from None
    kind = content.pop("peft_type", None) if isinstance(content, dict) else None
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(PeftType(one).value for one in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise ConfigError(f"--peft-config {file}: peft_type is {kind!r}; known: {known}")
    chosen = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    if issubclass(chosen, PromptLearningConfig):
        raise ConfigError(
            f"--peft-config {file}: {kind} puts tokens before the text, around the model and not in it; use "
            "--method prefix"
        )
    known = [field.name for field in fields(chosen)]
    for name in content:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise ConfigError(f"--peft-config {file}: {kind} has no {name!r}; {hint}")
    if content.get("target_modules") and config.targets != "language":
        raise ConfigError(f"--targets: {file} has target_modules; leave one of them out")
    try:
        made = chosen(**{**content, "inference_mode": False})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--peft-config {file}: {' '.join(str(error).split())}") from None
    if kind == "LN_TUNING" and not made.target_modules:  # what --targets names are linear layers
        raise ConfigError(f"--peft-config {file}: LN_TUNING needs target_modules, norms; or use --method norm")
    if kind == "ADALORA" and made.target_r > made.init_r:  # which PEFT finds out in the middle of training
        raise ConfigError(f"--peft-config {file}: target_r {made.target_r} is more than init_r {made.init_r}; lower it")
    return made


class PeftAttachment:
    """PEFT's modules in a model, with the methods of `peft_methods.Attachment` that training needs.

    Without `target_modules` in the configuration they go on the linear layers of the part that `--targets` names.
    """

    def __init__(self, config: TrainConfig, vlm: VLM):
        from peft import get_peft_model

        chosen = read_peft_config(config)
        if getattr(chosen, "target_modules", "") is None:
            chosen.target_modules = vlm.targets(config.targets) if config.targets in PARTS else config.target_list
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of names in transformers that PEFT still uses
                self.peft_model = get_peft_model(vlm.model, chosen)
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"--peft-config {config.peft_config}: {' '.join(str(error).split())}") from None
        except RuntimeError:
            if not any(_is_quantized(module) for module in vlm.model.modules()):
                raise
            raise ConfigError(f"--peft-config {config.peft_config}: {NOT_QUANTIZED}") from None
        if problem := _why_useless(self.peft_model):
            raise ConfigError(f"--peft-config {config.peft_config}: {problem}")
        self._steps = 0
        self._is_adalora = chosen.peft_type == "ADALORA"

    @property
    def trainable(self) -> int:
        return self.peft_model.get_nb_trainable_parameters()[0]

    @property
    def total(self) -> int:
        return self.peft_model.get_nb_trainable_parameters()[1]

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.peft_model.parameters() if parameter.requires_grad]

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": self.parameters(), "lr": learning_rate}]

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """AdaLoRA and its like share ranks out after each step; others have nothing to do."""
        tuner = self.peft_model.base_model
        if hasattr(tuner, "update_and_allocate"):

            def allocate(*_: Any) -> None:
                self._steps += 1
                tuner.update_and_allocate(self._steps)

            optimizer.register_step_post_hook(allocate)

    def loss_terms(self, count: float | Tensor | None) -> None:
        """Begin the step's gradients with those of AdaLoRA's own term of the loss; others have none."""
        if self._is_adalora:
            adalora.orthogonality(self.peft_model.base_model).backward()

    def state_dict(self) -> dict[str, Tensor]:
        """The trained parameters; and, behind `memory:`, what a method remembers of the steps done."""
        return self._parameters() | {f"{MEMORY}{name}": one for name, one in self._memory().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self._parameters()
        memory = {name.removeprefix(MEMORY): one for name, one in state.items() if name.startswith(MEMORY)}
        given = {name: one for name, one in state.items() if not name.startswith(MEMORY)}
        if own.keys() != given.keys():
            raise ConfigError(f"--peft-config: {sorted(own.keys() ^ given.keys())[0]} is not in both model and state")
        for name, tensor in own.items():
            tensor.copy_(given[name])
        self._steps = int(memory.pop(STEPS, 0))
        if self._is_adalora:
            adalora.remember(self.peft_model.base_model, memory)

    def _parameters(self) -> dict[str, Tensor]:
        return {name: one.detach() for name, one in self.peft_model.named_parameters() if one.requires_grad}

    def _memory(self) -> dict[str, Tensor]:
        steps = {STEPS: torch.tensor(self._steps)} if self._steps else {}
        return steps | adalora.memory(self.peft_model.base_model) if self._is_adalora else steps

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model is the base model."""
        return self.peft_model.disable_adapter()

    def save(self, folder: str | PathLike, base_model: str | None = None) -> None:
        self.peft_model.peft_config["default"].base_model_name_or_path = base_model
        # Base embeddings are not trained, and asking the hub for their size is not for here.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* have invalid shape")  # AdaLoRA leaves some with no ranks
            self.peft_model.save_pretrained(str(folder), save_embedding_layers=False)


def _why_useless(peft_model: Any) -> str | None:
    """What is wrong with PEFT's modules in a model that PEFT itself finds out too late, if at all."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    config, modules = peft_model.peft_config["default"], dict(peft_model.named_modules())
    kind = getattr(config.peft_type, "value", config.peft_type)
    layers = [module for module in modules.values() if isinstance(module, BaseTunerLayer)]
    if not layers or not any(one.requires_grad and one.numel() for one in peft_model.parameters()):
        return f"{kind} trains nothing in this model; give it what its documentation names, or use another kind"
    # PEFT has a layer of its own for each kind of quantized weight, in a module of its own.
    if any(".bnb" not in type(layer).__module__ for layer in layers if _is_quantized(layer.get_base_layer())):
        return NOT_QUANTIZED
    tied = _tied(peft_model) if not getattr(config, "ensure_weight_tying", False) else ()
    for name, module in modules.items():
        if isinstance(module, ModulesToSaveWrapper) and module in tied:
            name = name.removeprefix("base_model.model.")
            return f"modules_to_save: embeddings and head share {name}'s weights; add ensure_weight_tying: true"
    return None


def _tied(peft_model: Any) -> tuple[nn.Module, ...]:
    """Embeddings and head, if their weights are the same; such a pair, trained apart, cannot be loaded again."""
    both = peft_model.get_input_embeddings(), peft_model.get_output_embeddings()
    first, second = (getattr(getattr(module, "original_module", module), "weight", None) for module in both)
    return both if first is not None and first is second else ()


def _is_quantized(module: nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes")
