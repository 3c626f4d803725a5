"""The records that operations take, and what an operation does with each piece of memory that it is given."""

from typing import Annotated, NamedTuple, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class Role(NamedTuple):
    """Whether an argument's content matters before the call, and whether it does afterwards."""

    read: bool
    written: bool
    over: str = ""  # an argument that it may be, element by element, overwritten as it is read

    @property
    def transfers(self) -> int:
        """How often its memory must at least be moved."""
        return self.read + self.written


# An argument without one of these is only read.
Written = Annotated[_T, Role(False, True)]
WrittenOverV = Annotated[_T, Role(False, True, "v")]
Updated = Annotated[_T, Role(True, True)]
Scratch = Annotated[_T, Role(False, False)]  # its content is unspecified before and afterwards


class Norm(NamedTuple):
    """A BatchNorm (Ioffe and Szegedy 2015): vectors [C] in the accumulator dtype. `mean, var`: the statistics that it
    normalises by, var biased; `gamma, beta`: weight and bias, or None."""

    mean: Tensor
    var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float


class BatchNorm(NamedTuple):
    """A BatchNorm whose `mean, var` are None where it takes those of the batch."""

    mean: Tensor | None
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    @property
    def uses_batch(self) -> bool:
        return self.mean is None

    def on(self, stats: Tensor) -> Norm:
        """With the statistics that it normalises by: its own, or else those of the batch [2, C]."""
        mean, var, *others = self
        return Norm(*stats.unbind(), *others) if mean is None or var is None else Norm(mean, var, *others)  # type: ignore[arg-type]


class NormGradient(NamedTuple):
    """Where a backward ends: the norm's own gradient [C], and the correction [2, C] of the channels that it read, added
    to; None if the norm did not use statistics of the batch."""

    dgamma: Written[Tensor]
    dbeta: Written[Tensor]
    correction: Updated[Tensor | None]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which statistics and gradient sums of `dtype` activations are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32
