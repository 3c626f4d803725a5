"""The contract's counter-based dropout inside a kernel: SplitMix64 of (seed, element)."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def dropout_scale(
    seed,  # int64 scalar in memory
    i,  # int64, any shape: elements of the dense output [M, G], row * G + channel
    threshold,  # round(drop_rate * 2**24)
    keep,  # float, 1 - drop_rate
):
    """What dropout multiplies elements i by: 0 or 1 / keep."""
    z = tl.load(seed).to(tl.uint64, bitcast=True) + (i + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return tl.where((z >> 40).to(tl.int32) >= threshold, tl.div_rn(1.0, keep), 0.0)


class Dropout(NamedTuple):
    """What a kernel takes of a layer's dropout."""

    seed: Tensor | None  # None: it does not run
    threshold: int
    keep: float  # 1 where nothing is kept, and it divides nothing

    @classmethod
    def of(cls, drop_rate: float, seed: Tensor | None) -> "Dropout":
        return cls(seed, round(drop_rate * (1 << 24)), 1.0 - drop_rate if drop_rate < 1 else 1.0)
