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


def constant(function: _Function) -> _Function:
    """Have torch.compile call `function` as it is, while it traces, and take the result for a constant.

    `torch.compiler.assume_constant_result` without importing the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class cached_property:
    """functools.cached_property, which torch.compile can trace: it takes no lock."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        value = self.function(instance)
        object.__setattr__(instance, self.name, value)
        return value
