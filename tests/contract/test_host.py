"""A step never waits for what it computes: no operation of it reads data on the host, which a CUDA graph could not
capture and which would stop a GPU between layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from densenet_fast import backends

from ..cuda.device import Machine
from ..rows import thorough
from .nets import SMALLEST, cumulative, mixed_momenta, net

ATEN = torch.ops.aten
# Whose result, or its shape, is made of values; .item(), int(), float() and bool() come down to the first.
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_}
READING = {ATEN._local_scalar_dense, ATEN.equal, ATEN.is_nonzero, ATEN.nonzero, ATEN.masked_select, ATEN._unique2}
# Which hand out memory without an operation.
METHODS = ("cpu", "numpy", "tolist", "__array__", "__dlpack__")


class NoReads(TorchDispatchMode):
    """Refuses them, in Python's code and in what PyTorch's operations are made of."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func.overloadpacket in READING or by_mask:
            raise AssertionError(f"{func} reads data on the host")
        return func(*args, **(kwargs or {}))


def refusing(name):
    method = getattr(Tensor, name)

    def call(*args, **kwargs):
        if torch._C._len_torch_dispatch_stack():
            raise AssertionError(f"Tensor.{name} reads data on the host")
        return method(*args, **kwargs)

    return call


@contextmanager
def no_reads(device: torch.device) -> Iterator[None]:
    """Nothing on `device` may be read; on a GPU the driver's calls are watched, too."""
    with pytest.MonkeyPatch.context() as patch, NoReads():
        for name in METHODS:
            patch.setattr(Tensor, name, refusing(name))
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def apart(function):
    """`function`, read by nobody's mode."""

    def call(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


@pytest.fixture
def seen_through(backend, monkeypatch):
    """The backend, its operations in Python run as the functions that they are: of an operation a mode sees but the
    call. What stands in for a GPU may read what it computes."""
    if backend.on_ptx:
        monkeypatch.setattr(Machine, "_run", apart(Machine._run))
    elif backend.name != "native":
        module = import_module(f"densenet_fast.backends.{backend.name}")
        names = vars(backends.operations(backend.name, backend.device, backend.dtype))
        functions = SimpleNamespace(**{name: getattr(module, name) for name in names})
        monkeypatch.setattr(backends, "operations", lambda *_: functions)
        if backend.stand_in:
            interpreter = import_module("triton.runtime.interpreter").GridExecutor
            monkeypatch.setattr(interpreter, "__call__", apart(interpreter.__call__))
    return backend


def mixed_momenta_and_dropout(model):
    mixed_momenta(model)
    for layer in model.features.denseblock1.values():
        layer.drop_rate = 0.2


@pytest.mark.parametrize("change", [thorough(cumulative), mixed_momenta_and_dropout])
def test_a_step_reads_nothing(seen_through, change):
    (shape,) = SMALLEST.values()
    model = net(shape)
    change(model)
    seen_through.put(model)
    like = {"device": seen_through.device, "dtype": seen_through.dtype}
    x, cotangent = torch.randn(2, 3, shape.size, shape.size, **like), torch.randn(2, 10, **like)
    model(x).backward(cotangent)  # what is loaded, compiled and planned once
    with no_reads(seen_through.device):
        model(x).backward(cotangent)


READS = {
    "item": lambda t: t.item(),
    "int": int,
    "bool": bool,
    "list": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "cpu": lambda t: t.cpu(),
    "equal": lambda t: torch.equal(t, t),
    "mask": lambda t: t[t > 0],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_is_seen(read):
    x = torch.ones(1)
    with pytest.raises(AssertionError, match="reads data on the host"), no_reads(x.device):
        read(x)
