"""Which modules a method goes on: `targets` is one of

    ["q_proj", "self_attn.v_proj"]    names, matched from the end at a dot boundary
    "re:.*layers\\.[0-3]\\.fc1"       a regular expression, matched against the whole name
    "all-linear"                      every linear-like module but the output head

Every entry has to match, and to match modules only that the method can go on: a typo never trains less than was asked
for. Names are those of the model before anything was attached.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from .bridge import layout
from .tree import bare, named_modules, walk

ALL_LINEAR = "all-linear"
Targets = Sequence[str] | str


class TargetError(ValueError):
    """A target entry that matches no module, or one that the method cannot go on."""


def check_targets(targets: Targets) -> str | tuple[str, ...]:
    """`targets` in immutable form; ValueError when they can be no targets of any model."""
    if isinstance(targets, str):
        if targets != ALL_LINEAR and not targets.startswith("re:"):
            raise ValueError(f"targets={targets!r}: give a list of names, 're:<regex>' or {ALL_LINEAR!r}")
        try:
            re.compile(_pattern(targets))
        except re.error as error:
            raise ValueError(f"targets={targets!r}: not a regular expression ({error})") from None
        return targets
    entries = tuple(targets)
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise ValueError(f"targets={targets!r}: give at least one module name, and only non-empty strings")
    return entries


def check_pattern(within: str) -> None:
    try:
        re.compile(within)
    except re.error as error:
        raise ValueError(f"within={within!r}: not a regular expression ({error})") from None


def is_linear(module: nn.Module) -> bool:
    return layout(module) is not None


def find_targets(
    model: nn.Module, targets: Targets, fits: Callable[[nn.Module], bool] = is_linear, kind: str = "linear layer"
) -> dict[str, nn.Module]:
    """The matching modules by name, each once under its first name, in the order of `model.named_modules()`.

    `fits` says which modules the method can go on, and `kind` what it calls them.

    Raises:
        TargetError: an entry matches nothing, or matches a module that does not fit.
    """
    first_names: dict[nn.Module, str] = {}
    matches: dict[str, list[nn.Module]] = {entry: [] for entry in ([targets] if isinstance(targets, str) else targets)}
    heads = output_heads(model) if targets == ALL_LINEAR else set()
    matching = matcher(targets)
    for name, module in walk(model):
        first_names.setdefault(module, name)
        if targets == ALL_LINEAR:
            if name and is_linear(module) and bare(module) not in heads:
                matches[ALL_LINEAR].append(module)
            continue
        for entry in matching(name):
            if not name or not fits(module):
                found = f"targets entry {entry!r} matches {name!r}, a {type(bare(module)).__name__}"
                raise TargetError(f"{found}: {_fix(module, kind)}")
            matches[entry].append(module)
    for entry, modules in matches.items():
        if not modules:
            names = [name for module, name in first_names.items() if name and fits(module)]
            raise TargetError(f"targets entry {entry!r} matches no module; {_nearest(entry, names, kind)}")
    found = {module for modules in matches.values() for module in modules}
    return {name: module for module, name in first_names.items() if module in found}


def exact_targets(model: nn.Module, names: Iterable[str]) -> list[str] | str:
    """Targets that match the modules of these full names and no other: the names, or a regular expression.

    A list will not do when a full name is also the end of a longer one ("fc" beside "head.fc").
    """
    names = sorted(names)
    matching = matcher(names)
    others = named_modules(model).keys() - set(names)
    if not any(matching(name) for name in others):
        return names
    return "re:" + "|".join(re.escape(name) for name in names)


def output_heads(model: nn.Module) -> set[nn.Module]:
    """Modules that turn hidden states into vocabulary scores, as transformers names them or by a tied embedding."""
    heads: set[nn.Module] = set()
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "lm_head" or getattr(module, "weight", None) in embeddings:
            heads.add(module)
        if callable(output_embeddings := getattr(module, "get_output_embeddings", None)):
            try:
                heads.add(output_embeddings())
            except NotImplementedError:
                continue
    return heads - {None}


def _pattern(targets: str) -> str:
    return targets.removeprefix("re:")


def matcher(targets: Targets):
    """A function from a module name to the entries that match it."""
    if isinstance(targets, str):
        pattern = re.compile(_pattern(targets))
        return lambda name: [targets] if pattern.fullmatch(name) else []
    entries = set(targets)

    def matching(name: str) -> list[str]:
        # Look the name's own endings up instead of trying every entry: a saved adapter lists hundreds of names.
        parts = name.split(".")
        return [end for start in range(len(parts)) if (end := ".".join(parts[start:])) in entries]

    return matching


def _fix(module: nn.Module, kind: str) -> str:
    if isinstance(module, nn.Linear):
        return "its weight is used without calling it, so nothing put here would run; leave it out"
    return f"only a {kind} can be a target; name those inside it, or leave it out"


def _nearest(entry: str, names: list[str], kind: str) -> str:
    if not names:
        return f"the model has no {kind}"
    if not entry.startswith("re:") and entry != ALL_LINEAR:
        length = entry.count(".") + 1
        names = list(dict.fromkeys(".".join(name.split(".")[-length:]) for name in names))
    near = difflib.get_close_matches(entry.removeprefix("re:"), names, n=3, cutoff=0.0)
    return f"nearest: {', '.join(near)}"
