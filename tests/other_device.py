"""A second device, "gpu", on a machine that has none: its memory is the CPU's, and it refuses what CUDA refuses.

It is torch's PrivateUse1 device with one kernel for all operations: the tensors of the device are looked at as tensors
of the CPU in the same memory, and the operation runs on these. So gradients, views, storages and copies are torch's
own, and what a machine with one device cannot show is an error: an operation on tensors of two devices, and a
generator of another device than the tensor's. Draws of the device come from a generator of its own.

`set_up` changes the process for good: use it in one of your own.
"""

import functools

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "gpu"
CPU = torch.device("cpu")
NATIVE = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
# What changes or reads no element: torch's own implementations for a CPU do not look at the device.
OF_SHAPES = ("aten::as_strided", "aten::view", "aten::_reshape_alias", "aten::unfold", "aten::view_as_real")
# Tensors of the CPU that CUDA's kernels take beside their own: what is copied, and indices.
COPIES = ("aten::copy_", "aten::_copy_from", "aten::_to_copy", "aten::_copy_from_and_resize")
INDEXED = ("aten::index.Tensor", "aten::_unsafe_index.Tensor", "aten::index_put", "aten::_index_put_impl_")
DRAWS = ("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm")
DRAWS_IN_PLACE = ("bernoulli_", "exponential_", "multinomial", "normal_", "random_", "uniform_")

draws = torch.Generator()  # those of the device


class Generator(torch.Generator):
    """Stands for `torch.Generator`, which cannot be made for such a device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, device="cpu")
        made.stands_on = torch.device(device).type
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self) -> torch.device:
        return torch.device(self.stands_on)


class Module(_DummyBackendModule):
    """`torch.gpu`."""

    def manual_seed_all(self, seed: int) -> None:
        draws.manual_seed(seed)

    def get_rng_state(self, device=None) -> Tensor:
        return draws.get_state()

    def set_rng_state(self, state: Tensor, device=None) -> None:
        draws.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def set_up() -> None:
    """Let there be the device. Raises AttributeError where torch has no devices written in Python."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    kernels = torch.library.Library("aten", "IMPL")
    for name in ("convolution_overrideable", "convolution_backward_overrideable"):
        kernels.impl(name, globals()[f"_{name}"], "PrivateUse1")
    torch.Generator, torch.UntypedStorage.clone = Generator, _clone
    for holder, names in ((torch.Tensor, DRAWS_IN_PLACE), (torch, DRAWS)):
        for name in names:
            setattr(holder, name, _checked(getattr(holder, name)))
    torch.__future__.set_swap_module_params_on_conversion(True)  # as on CUDA, what is tied stays so
    set_up.libraries = library, kernels  # as long as they live, so does what they register


def _run(op, *args, **kwargs):
    """The kernel of all operations that have a tensor of the device, or are to make one."""
    name = op._schema.name
    if name.startswith(OF_SHAPES) or name == "aten::set_":
        return op.redispatch(NATIVE, *args, **kwargs)
    if name == "aten::_copy_from":  # what every copy between devices comes down to
        source, target = args[:2]
        _alias(target, CPU).copy_(_alias(source, CPU))
        return target
    _check(op, args, kwargs)
    onto = kwargs.get("device")
    if onto is not None:
        kwargs["device"] = CPU
    theirs: dict[int, Tensor] = {}

    def on_cpu(x):
        if isinstance(x, Tensor) and x.device.type == NAME:
            seen = _alias(x, CPU)
            theirs[id(seen)] = x
            return seen
        return x

    # Of numbers torch makes tensors, and a kernel in Python gets numbers again: then another overload takes them.
    given = zip((argument.type for argument in op._schema.arguments), args, strict=False)
    numbers = any(isinstance(kind, torch.TensorType) and isinstance(x, int | float) for kind, x in given)
    call = op.overloadpacket if numbers else op
    here, there = pytree.tree_map(on_cpu, (args, kwargs))
    if torch.Tag.nondeterministic_seeded in op.tags:
        before = torch.get_rng_state()
        torch.default_generator.set_state(draws.get_state())
        try:
            result = call(*here, **there)
        finally:
            draws.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)
    else:
        result = call(*here, **there)
    for seen, x in [(y, theirs[id(y)]) for y in pytree.tree_leaves((here, there)) if id(y) in theirs]:
        if seen.shape != x.shape or seen.stride() != x.stride() or seen.data_ptr() != x.data_ptr():  # out=
            _point(x, seen)
    back = CPU if onto is not None and torch.device(onto).type == "cpu" else torch.device(NAME, 0)
    return pytree.tree_map(lambda y: theirs.get(id(y), _alias(y, back)) if isinstance(y, Tensor) else y, result)


def _convolution_overrideable(*args):
    return _run(torch.ops.aten.convolution.default, *args)


def _convolution_backward_overrideable(gradient, x, weight, *args):
    biases = [weight.shape[0]] if args[-1][2] else None
    return _run(torch.ops.aten.convolution_backward.default, gradient, x, weight, biases, *args)


def _check(op, args, kwargs) -> None:
    """Raises RuntimeError where a CUDA device would."""
    name = op._schema.name + ("." + op._schema.overload_name if op._schema.overload_name else "")
    if not name.startswith(COPIES):
        given = (args[:1], args[2:]) if name.startswith(INDEXED) else (args, kwargs)
        tensors = [x for x in pytree.tree_leaves(given) if isinstance(x, Tensor)]
        devices = {x.device.type for x in tensors if x.ndim or x.device.type != "cpu"}
        if len(devices) > 1:
            raise RuntimeError(f"{name}: tensors on different devices, {[(str(x.device), *x.shape) for x in tensors]}")


def _checked(draw):
    """Raises RuntimeError where a generator is of another device than what is drawn."""

    @functools.wraps(draw)
    def checked(*args, **kwargs):
        if (generator := kwargs.get("generator")) is not None:
            onto = args[0].device if args and isinstance(args[0], Tensor) else torch.device(kwargs.get("device", "cpu"))
            if onto.type != generator.device.type:
                raise RuntimeError(f"{draw.__name__}: a generator on {generator.device} for draws on {onto}")
        return draw(*args, **kwargs)

    return checked


def _alias(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on this device in the memory of this one."""
    if x.device.type == device.type:
        return x
    empty = torch.empty(0, dtype=x.dtype) if device == CPU else torch._C._acc.create_empty_tensor((0,), x.dtype)
    return _point(empty, x)


def _point(x: Tensor, other: Tensor) -> Tensor:
    """Let x be the other, which is on another device."""
    memory = other.untyped_storage()
    memory = _on_cpu(memory) if x.device == CPU else _on_gpu(memory)
    with torch.no_grad():
        torch.ops.aten.set_.source_Storage_storage_offset.redispatch(
            NATIVE, x, memory, other.storage_offset(), other.shape, other.stride()
        )
    return x


def _on_cpu(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    return getattr(memory, "of", torch.UntypedStorage(0))  # what is empty need have none


def _on_gpu(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    found = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device(NAME, 0), memory.nbytes())
    found.of = memory  # kept alive
    return found


_clone_on_cpu = torch.UntypedStorage.clone


def _clone(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    return _clone_on_cpu(memory) if memory.device == CPU else _on_gpu(_clone_on_cpu(_on_cpu(memory)))
