"""The contract of operations: what every backend computes, and how one is called.

operations.py declares the operations, records.py and block.py what they take; declaration.py derives the rest. An
operation `foo` of backend `bar` is the PyTorch operator `densenet_fast::foo.bar`: one name, one overload per backend,
one schema. docs/internals/code-and-contract.md.
"""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from .block import Block, Half
from .declaration import DECLARATIONS, Declaration
from .operations import Operations
from .records import BatchNorm, Norm, NormGradient, accumulator

__all__ = [
    "DECLARATIONS",
    "BatchNorm",
    "Block",
    "Declaration",
    "Half",
    "Norm",
    "NormGradient",
    "Operations",
    "accumulator",
    "of",
    "register",
    "serve_modes",
]

_library = torch.library.Library("densenet_fast", "FRAGMENT")
_loaded: dict[str, Operations] = {}


def register(backend: str, implementation: ModuleType, dispatch_key: str | None) -> None:
    """Define `densenet_fast::<operation>.<backend>` for every operation, implemented by the module's function of that
    name.

    `dispatch_key` is the PyTorch dispatch key the functions serve, for instance "CompositeExplicitAutograd" for any
    device; None if a compiled library has registered its own implementations, of all.
    """
    for name, declared in DECLARATIONS.items():
        overload = f"{name}.{backend}"
        _library.define(f"{overload}{declared.schema}")
        if dispatch_key is not None:
            _library.impl(overload, declared.gathering(getattr(implementation, name)), dispatch_key)
        _library.impl(overload, _on_meta(name), "Meta")
    operators = {
        name: declared.flattening(getattr(getattr(torch.ops.densenet_fast, name), backend))
        for name, declared in DECLARATIONS.items()
    }
    _loaded[backend] = cast(Operations, SimpleNamespace(**operators))


def _on_meta(operation: str) -> Callable[..., None]:
    """Does nothing, since operations return nothing; it is also called where one tensor alone is on the meta device,
    and then nobody would notice."""

    def fake(*args: Any) -> None:
        flat = [each for arg in args for each in (arg if isinstance(arg, list) else [arg])]
        elsewhere = {str(t.device) for t in flat if isinstance(t, Tensor) and not t.is_meta}
        if elsewhere:
            raise RuntimeError(
                f"densenet_fast::{operation}: wrong device: got tensors on meta and on {', '.join(elsewhere)}, "
                "expected one device"
            )

    return fake


def of(backend: str) -> Operations:
    """The operations of a loaded backend: `of("eager").head_fwd(x, norm, y)`."""
    return _loaded[backend]


def serve_modes() -> None:
    """Before operations run: counters of FLOPs that are active learn of them."""
    if torch._C._len_torch_dispatch_stack():
        from . import flops  # rarely needed

        flops.register()
