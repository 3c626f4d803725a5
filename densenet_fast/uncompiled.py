"""`torch.compiler.disable` for functions that run before anybody has compiled anything: it costs no import."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])

_disabled: dict[Callable[..., Any], Callable[..., Any]] = {}

REASON = "densenet_fast runs its own operations; torch.compile compiles the layers around them"


def uncompiled(function: _Function) -> _Function:
    """Have torch.compile call `function` as it is, with a graph break around it.

    `torch.compiler.disable` itself imports the compiler, two seconds at start-up for everyone.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if function not in _disabled:
            _disabled[function] = torch.compiler.disable(function, reason=REASON)
        return _disabled[function](*args, **kwargs)

    return call  # type: ignore[return-value]
