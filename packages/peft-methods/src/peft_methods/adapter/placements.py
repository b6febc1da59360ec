"""Where adapters go in a transformer, told from its module tree.

A block is an entry of a ModuleList or a Sequential, or one of torch's own encoder and decoder layers, that has

* attention: children with "att" in their names and linear layers inside, self-attention and cross-attention alike;
* one MLP or more: a child with several linear layers inside, or two children with one each (`fc1` and `fc2` of OPT,
  `intermediate` and `output` of BERT and GIT); the first reads, and the last returns, what is as wide as the attention.

The output of either is that of its last linear layer: wherever the model's code adds the residual and normalizes, it
does so after that. So does it drop out, but where a linear layer has a dropout and a norm as its only siblings (BERT,
GIT), and there the adapter comes after the dropout as well, as in the code of Houlsby et al.

A parallel adapter reads what goes into the MLP and is added to its output.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..bridge import layout
from ..tree import Companion, bare, named_modules, walk

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")
_REPEATED = nn.ModuleList | nn.Sequential
_TORCH_LAYERS = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer


@dataclass(frozen=True)
class Site:
    """A place for an adapter, which is added to what `host` returns.

    `source`: the module whose input a parallel adapter reads. `weight`: one of the base nearby, for dtype and device.
    """

    host: nn.Module
    in_features: int
    out_features: int
    weight: Tensor
    source: nn.Module | None = None

    @property
    def places(self) -> tuple[nn.Module, ...]:
        return (self.host,) if self.source in (None, self.host) else (self.host, self.source)


def find_sites(model: nn.Module, placement: str) -> dict[str, Site]:
    """The sites of a placement by the name of the host; none in a model without blocks."""
    modules = named_modules(model)
    found = {site.host: site for block in _blocks(modules.values()) for site in _sites_in(block, placement)}
    return {name: found[module] for name, module in modules.items() if module in found}


def site_at(module: nn.Module, placement: str) -> Site | None:
    """The site at a module that was named; None where the width of what it returns cannot be told.

    The width is that of its last linear layer, or of itself if it is an embedding or a norm.
    """
    base = bare(module)
    source = module if placement == "parallel" else None
    if isinstance(base, nn.MultiheadAttention):
        return Site(module, base.embed_dim, base.embed_dim, base.out_proj.weight, source)
    if linears := [] if isinstance(base, nn.ModuleList | nn.ModuleDict) else _linears(module):
        width = layout(linears[-1]).out_features
        return Site(module, layout(linears[0]).in_features if source else width, width, linears[-1].weight, source)
    if isinstance(base, nn.Embedding) and not source:
        return Site(module, base.embedding_dim, base.embedding_dim, base.weight)
    if _is_norm(base) and getattr(base, "weight", None) is not None:
        return Site(module, len(base.weight), len(base.weight), base.weight, source)
    return None


def _blocks(modules) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(bare(module), _TORCH_LAYERS):
            yield module
        if isinstance(bare(module), _REPEATED):
            yield from _children(module).values()


def _sites_in(block: nn.Module, placement: str) -> Iterator[Site]:
    attentions = _attentions(block)
    width = attentions[0].out_features if attentions else None
    mlps = [
        (child, first, last)
        for child, first, last in _mlps(block)
        if layout(first).in_features == layout(last).out_features == width
    ]
    if mlps and placement == "houlsby":
        yield from attentions
    for child, first, last in mlps:
        if placement != "parallel":
            yield _after(last, block)
        elif child is not None:
            yield Site(child, width, width, last.weight, source=child)
        else:
            yield Site(_after(last, block).host, width, width, last.weight, source=first)


def _attentions(block: nn.Module) -> list[Site]:
    sites = []
    for name, child in _children(block).items():
        if "att" in name.lower():
            if isinstance(bare(child), nn.MultiheadAttention):
                sites.append(site_at(child, "houlsby"))
            elif linears := _linears(child):
                sites.append(_after(linears[-1], block))
    return sites


def _mlps(block: nn.Module) -> Iterator[tuple[nn.Module | None, nn.Module, nn.Module]]:
    """The MLP, if it is a module, and its first and last linear layer; of mixtures of experts nothing."""
    single = []
    for name, child in _children(block).items():
        linears = _linears(child)
        if "att" in name.lower() or not linears or any(isinstance(m, nn.ModuleList) for m in child.modules()):
            continue
        if len(linears) > 1:
            yield child, linears[0], linears[-1]
        else:
            single += linears
    for first, last in zip(single[::2], single[1::2], strict=False):
        if layout(first).out_features == layout(last).in_features:
            yield None, first, last


def _after(linear: nn.Module, block: nn.Module) -> Site:
    """The site at the output of a linear layer somewhere inside the block."""
    siblings = next(children for _, m in walk(block) if linear in (children := list(_children(m).values())))
    dropouts = [module for module in siblings if isinstance(module, nn.Dropout)]
    alone = len(siblings) == 3 and len(dropouts) == 1 and any(_is_norm(module) for module in siblings)
    width = layout(linear).out_features
    return Site(dropouts[0] if alone else linear, width, width, linear.weight)


def _children(module: nn.Module) -> dict[str, nn.Module]:
    children = bare(module)._modules.items()
    return {name: child for name, child in children if child is not None and not isinstance(child, Companion)}


def _linears(module: nn.Module) -> list[nn.Module]:
    return [inside for _, inside in walk(module) if layout(inside) is not None]


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
