"""What an operation must cost on any machine: the fewest bytes it can move, and its arithmetic.

Bytes: every argument read once and every result written once. What a kernel reads twice, or keeps in cache between two
operations, is the difference between this floor and the truth. Arithmetic: the convolutions' products and sums.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Traffic(NamedTuple):
    bytes: int
    flops: int  # a multiplication and an addition are two

    def __add__(self, other: "Traffic") -> "Traffic":  # type: ignore[override]
        return Traffic(self.bytes + other.bytes, self.flops + other.flops)


def traffic(operation: torch._ops.OpOverload, args: Sequence[Any], results: Any) -> Traffic:
    """The cost of one call of an operation of the contract, `densenet_fast::<name>.<backend>`."""
    given = {argument.name: value for argument, value in zip(operation._schema.arguments, args, strict=False)}
    roles = {argument.name: role(operation, argument.name) for argument in operation._schema.arguments}
    moved = _bytes(results) + sum(_bytes(given.get(name)) * roles[name].transfers for name in roles)
    pixels = next((given[n] for n in ("dy", "y", "x") if isinstance(given.get(n), Tensor)), None)
    outputs = 0 if pixels is None or pixels.dim() < 4 else pixels.numel() // pixels.shape[1]
    weights = sum(value.numel() for name, value in given.items() if name.startswith("weight"))
    return Traffic(moved, 2 * (1 + bool(given.get("wgrad"))) * weights * outputs)


class Role(NamedTuple):
    """What an operation does with an argument's memory; its content before and after counts, not its use as scratch."""

    read: bool
    written: bool

    @property
    def transfers(self) -> int:
        return self.read + self.written


def role(operation: torch._ops.OpOverload, argument: str) -> Role:
    """An argument that may change is added to, unless it is one of the few that are overwritten, or u, of which nothing
    is left."""
    name = operation.name().partition("::")[2].partition(".")[0]
    info = next(a.alias_info for a in operation._schema.arguments if a.name == argument)
    if info is None or not info.is_write or argument == "u":
        return Role(read=True, written=False)
    overwrites_dx = name in ("transition_bwd", "stem_bwd", "head_bwd")
    overwritten = argument in ("y", "y_mean", "y_var") or (argument == "dx" and overwrites_dx)
    return Role(read=not overwritten, written=True)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0
