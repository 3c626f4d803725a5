"""The second launch of an operation: partial results of the first, merged in a fixed order, and what follows from them.

Forward: tile statistics to mean and variance. Backward: sums to gradients of gamma and beta and to the deferred
correction, and partial weight gradients to the weight's. docs/internals/algorithm.md, "Deferred correction".
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, next_power_of_2
from .launch import launch


@triton.jit
def merge_stats_kernel(
    partial,  # [T, 2, C] mean and sum of squared deviations of each tile
    count,  # [T] values in each
    mean,  # [C] written
    var,  # [C] written, biased
    T,
    C,
    total,  # float, the sum of count
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Chan, Golub and LeVeque 1983: the merged mean first, then deviations from it."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = partial + c[None, :]
    sums = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        mask = (t < T)[:, None] & (c < C)[None, :]
        n = tl.load(count + t, mask=t < T, other=0.0)[:, None]  # [BLOCK_T, 1]
        sums += n * tl.load(at + t[:, None].to(tl.int64) * (2 * C), mask=mask, other=0.0)
    merged = tl.sum(sums, 0) / total
    squares = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        mask = (t < T)[:, None] & (c < C)[None, :]
        n = tl.load(count + t, mask=t < T, other=0.0)[:, None]
        row = at + t[:, None].to(tl.int64) * (2 * C)
        deviation = tl.load(row, mask=mask, other=0.0) - merged[None, :]
        squares += tl.load(row + C, mask=mask, other=0.0) + n * deviation * deviation
    tl.store(mean + c, merged, mask=c < C)
    tl.store(var + c, tl.sum(squares, 0) / total, mask=c < C)


def merge_stats(partial: Tensor, count: Tensor, tiles: int, mean: Tensor, var: Tensor, total: int) -> None:
    """mean, var [C] of `total` values from the partial [tiles, 2, C] and count [tiles] of `store_stats`."""
    channels = mean.shape[0]
    launch(
        merge_stats_kernel,
        (cdiv(channels, 8),),
        num_warps=8,
        partial=partial,
        count=count,
        mean=mean,
        var=var,
        T=tiles,
        C=channels,
        total=float(total),
        BLOCK_T=min(1024, next_power_of_2(tiles)),
        BLOCK_C=8,
    )


@triton.jit
def sum_rows(
    rows,  # [R, row_stride]
    R,
    row_stride,
    c,  # [BLOCK_C]
    mask,  # [BLOCK_C]
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of columns c, [BLOCK_C]: BLOCK_R interleaved ones, then those."""
    sums = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for start in range(0, R, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        at = rows + r[:, None].to(tl.int64) * row_stride + c[None, :]
        sums += tl.load(at, mask=(r < R)[:, None] & mask[None, :], other=0.0)
    return tl.sum(sums, 0)


@triton.jit
def finish_bwd_kernel(
    sums,  # [R, 2, C] partial sum(v), sum(v * (x - mean))
    weights,  # [S, TAPS, K, C] partial gradients of the weight, or None
    var,  # [C]
    gamma,  # [C] or None
    eps,
    dgamma,  # [C] written
    dbeta,  # [C] written
    a,  # [C] added to, if BATCH_STATS
    b,  # [C] added to, if BATCH_STATS
    dweight,  # [K, C, TAPS] written, or None
    R,
    S,
    K,
    C,
    count,  # float, values per channel
    BATCH_STATS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Programs up to cdiv(C, BLOCK_C) finish the norm, those behind them BLOCK_W elements of the weight each."""
    norms = tl.cdiv(C, BLOCK_C)
    if tl.program_id(0) < norms:
        c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
        mask = c < C
        sum_v = sum_rows(sums, R, 2 * C, c, mask, BLOCK_R, BLOCK_C)
        sum_vx = sum_rows(sums + C, R, 2 * C, c, mask, BLOCK_R, BLOCK_C)
        rstd = tl.rsqrt(tl.load(var + c, mask=mask, other=1.0) + eps)
        tl.store(dgamma + c, sum_vx * rstd, mask=mask)
        tl.store(dbeta + c, sum_v, mask=mask)
        if BATCH_STATS:
            scale = rstd
            if gamma is not None:
                scale *= tl.load(gamma + c, mask=mask, other=0.0)
            new_a = tl.load(a + c, mask=mask) + scale * (sum_v / count)
            new_b = tl.load(b + c, mask=mask) + scale * rstd * (sum_vx * rstd / count)
            tl.debug_barrier()  # every warp has loaded what one of them stores
            tl.store(a + c, new_a, mask=mask)
            tl.store(b + c, new_b, mask=mask)
    elif weights is not None:
        size = TAPS * K * C
        i = (tl.program_id(0) - norms) * BLOCK_W + tl.arange(0, BLOCK_W)
        total = sum_rows(weights, S, size, i, i < size, BLOCK_S, BLOCK_W)
        tap = i // (K * C)
        row = (i // C) % K
        tl.store(dweight + (row * C + i % C) * TAPS + tap, total.to(dweight.dtype.element_ty), mask=i < size)


class Gradients(NamedTuple):
    """Where a backward operation ends: a, b [C] are added to, dgamma, dbeta [C] and dweight [K, C, h, w] written; an
    empty dweight is not wanted."""

    a: Tensor
    b: Tensor
    dgamma: Tensor
    dbeta: Tensor
    dweight: Tensor

    @classmethod
    def new(cls, a: Tensor, b: Tensor, weight: Tensor, wgrad: bool) -> "Gradients":
        dgamma, dbeta = torch.empty_like(a), torch.empty_like(a)
        return cls(a, b, dgamma, dbeta, weight.new_empty(weight.shape if wgrad else 0))

    @property
    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.dgamma, self.dbeta, self.dweight


def finish_bwd(
    sums: Tensor,
    rows: int,
    weights: Tensor,
    splits: int,
    var: Tensor,
    gamma: Tensor | None,
    eps: float,
    batch_stats: bool,
    count: int,
    into: Gradients,
) -> None:
    """The gradients from sums [rows, 2, C] and weights [splits, h * w, K, C]."""
    channels, dweight = var.shape[0], into.dweight
    wgrad = dweight.numel() > 0
    launch(
        finish_bwd_kernel,
        (cdiv(channels, 8) + cdiv(dweight.numel(), 512),),
        num_warps=8,
        sums=sums,
        weights=weights if wgrad else None,
        var=var,
        gamma=gamma,
        eps=eps,
        dgamma=into.dgamma,
        dbeta=into.dbeta,
        a=into.a,
        b=into.b,
        dweight=dweight if wgrad else None,
        R=rows,
        S=splits,
        K=dweight.shape[0],
        C=channels,
        count=float(count),
        BATCH_STATS=batch_stats,
        TAPS=dweight.shape[2] * dweight.shape[3] if wgrad else 1,
        BLOCK_R=min(1024, next_power_of_2(rows)),
        BLOCK_C=8,
        BLOCK_S=min(4, next_power_of_2(splits)),
        BLOCK_W=512,
    )
