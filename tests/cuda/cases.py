"""Dtypes and sizes at which the CUDA kernels are tested."""

from typing import NamedTuple

import torch

from ..calls import Geometry


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


def label(value) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value)) if value else "plain"
