"""The record of one operation, and the pieces its schemas share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A BatchNorm as every operation takes it: vectors [C] in the accumulator dtype.
NORM = "Tensor mean, Tensor var, Tensor? gamma, Tensor? beta, float eps"


class Operation(NamedTuple):
    name: str
    schema: str  # arguments and results, without the name
    fake: Callable[..., Any]  # shapes, dtypes and strides of the results, no data


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which statistics and gradient sums of `dtype` activations are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def vector(x: Tensor, size: int) -> Tensor:
    """An uninitialised accumulator vector `[size]` on the device of activations `x`."""
    return x.new_empty(size, dtype=accumulator(x.dtype))


def image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """An uninitialised dense NHWC activation `[N, channels, height, width]` like `x`."""
    return torch.empty(
        (x.shape[0], channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two per-channel results of a reduction over `x` `[N, C, H, W]`."""
    return vector(x, x.shape[1]), vector(x, x.shape[1])
