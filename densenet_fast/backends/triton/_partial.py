"""Partial gradients of a weight, one of each split of the rows, added up in a fixed order by programs of a later launch
that has room. docs/internals/triton.md, "Reductions".
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv
from .plan import Planner

ELEMENTS = 512  # of a weight, whose gradient one program adds up
_ELEMENTS, _SPLITS = tl.constexpr(ELEMENTS), tl.constexpr(8)


@triton.jit
def sum_rows(
    rows,  # [R, row_stride]
    R,
    row_stride,
    c,  # [BLOCK_C]
    mask,  # [BLOCK_C]
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sums of columns c, [BLOCK_C]: BLOCK_R interleaved ones, then those."""
    sums = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        at = rows + r[:, None].to(tl.int64) * row_stride + c[None, :]
        sums += tl.load(at, mask=(r < R)[:, None] & mask[None, :], other=0.0)
    return tl.sum(sums, 0)


@triton.jit
def sum_weight(
    weights,  # [splits, weight_stride] partial gradients of a weight, each [TAPS, K, C]
    dweight,  # [K, C, TAPS] written
    splits,
    weight_stride,
    K,
    C,
    TAPS: tl.constexpr,
):
    """A program's part of a weight's gradient. K and C are read where there are several taps."""
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    i = part * _ELEMENTS + tl.arange(0, _ELEMENTS)
    exists = i < weight_stride
    total = sum_rows(weights, splits, weight_stride, i, exists, _ELEMENTS, _SPLITS)
    at = i
    if TAPS > 1:
        at = (i // C % K * C + i % C) * TAPS + i // (K * C)
    tl.store(dweight + at, total.to(dweight.dtype.element_ty), mask=exists)


@triton.jit
def rows_of_programs(weight_stride):
    """How many programs along axis 0 of the grid, with all along axis 1, it takes to add up a weight's gradient."""
    return tl.cdiv(tl.cdiv(weight_stride, _ELEMENTS), tl.num_programs(1))


@triton.jit
def sum_weight_kernel(
    weights,  # [splits, weight_stride]
    dweight,  # [weight_stride] written
    splits,
    weight_stride,
):
    sum_weight(weights, dweight, splits, weight_stride, 1, 1, 1)


class Partial(NamedTuple):
    """A weight's gradient in parts, which are still to be added."""

    weights: Tensor  # [splits, h * w, K, C]
    dweight: Tensor  # [K, C, h, w] written

    @staticmethod
    def programs(partial: "Partial | None", columns: int) -> int:
        """Those that add it up, along axis 0 of a grid that has so many along axis 1."""
        return 0 if partial is None else cdiv(cdiv(partial.dweight.numel(), ELEMENTS), columns)

    @staticmethod
    def arguments(partial: "Partial | None") -> dict[str, Any]:
        if partial is None:
            return {"weights": None, "dweight": None, "splits": 0, "weight_stride": 0}
        weights, dweight = partial
        return {
            "weights": weights,
            "dweight": dweight,
            "splits": weights.shape[0],
            "weight_stride": dweight.numel(),
        }


def sum_now(plan: Planner, partial: Partial) -> None:
    """In a launch of its own, for a 1x1 convolution's weight."""
    programs = Partial.programs(partial, 1)
    plan.launch(sum_weight_kernel, (programs,), num_warps=8, **Partial.arguments(partial))
