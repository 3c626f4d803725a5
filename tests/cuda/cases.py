"""Arguments for the CUDA kernels: those of `tests/native/cases.py`, in every dtype and at other geometries."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..native import cases
from ..native.cases import Case, Geometry, is_slice, whole_of


class Math(NamedTuple):
    """How products are made, and the dtype whose rounding that is: TF32 has float16's 11 bits."""

    dtype: torch.dtype
    tf32: bool = False

    @property
    def measure(self) -> torch.dtype:
        return torch.float16 if self.tf32 else self.dtype


MATHS = {
    "bf16": Math(torch.bfloat16),
    "fp16": Math(torch.float16),
    "fp32": Math(torch.float32),
    "tf32": Math(torch.float32, True),
}

# n, h, w, c, k, g: odd sizes; channels no multiple of anything; one pixel; one column; more rows than a tile, more
# channels than the stages of a pipeline hold, more of z than one turn takes.
GEOMETRIES = [
    Geometry(2, 5, 7, 24, 16, 4),
    Geometry(3, 8, 8, 37, 48, 12),
    Geometry(1, 13, 1, 9, 5, 3),
    Geometry(2, 1, 1, 30, 96, 24),
    Geometry(1, 10, 15, 176, 128, 32),
    Geometry(2, 5, 7, 150, 192, 48),
    Geometry(1, 6, 5, 301, 160, 40),
]


def make(name: str, geometry: Geometry, dtype: torch.dtype, **options) -> Case:
    """Arguments whose activations and weights are of `dtype`, slices still in a buffer whose remainder is NaN."""
    case = cases.make(name, geometry, **options)
    return Case([converted(a, dtype) for a in case.args], case.written)


def converted(argument, dtype: torch.dtype):
    if not isinstance(argument, Tensor) or argument.dim() < 2:
        return argument
    if not is_slice(argument):
        return argument.to(dtype)
    return whole_of(argument).to(dtype)[:, cases.ROOM : cases.ROOM + argument.shape[1]]
