"""The second launch of an operation: partial results of the first, merged in a fixed order, and what follows from them.

Forward: tile statistics to mean and variance. Backward: sums to gradients of gamma and beta and to the deferred
correction, and partial weight gradients to the weight's. docs/internals/algorithm.md, "Deferred correction".
"""

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm, NormGradient
from ._common import cdiv, next_power_of_2
from .arguments import Pair
from .plan import Planner


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


def tile_stats(plan: Planner, into: Pair | None, tiles: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Where `store_stats` leaves what `merge_stats` takes; nowhere if no statistics are wanted."""
    return (None, None) if into is None else (plan.empty(tiles, 2, into[0].shape[0]), plan.empty(tiles))


def merge_stats(plan: Planner, partial: Tensor | None, count: Tensor | None, into: Pair | None, total: int) -> None:
    """mean, var [C] of `total` values from the partial [tiles, 2, C] and count [tiles] of `store_stats`."""
    if into is None or partial is None or count is None:
        return
    mean, var = into
    tiles, _, channels = partial.shape
    plan.launch(
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
    a,  # [C] added to, or None
    b,  # [C] added to, or None
    dweight,  # [K, C, TAPS] written, or None
    R,
    S,
    K,
    C,
    count,  # float, values per channel
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
        if a is not None:
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


def finish_bwd(
    plan: Planner,
    sums: Tensor,
    weights: Tensor | None,
    norm: Norm,
    count: int,
    dnorm: NormGradient,
    dweight: Tensor | None,
) -> None:
    """The gradients from sums [rows, 2, C] and weights [splits, h * w, K, C]; dweight is [K, C, h, w]."""
    rows, _, channels = sums.shape
    a, b = (None, None) if dnorm.correction is None else dnorm.correction
    outputs, size, splits, taps = 0, 0, 1, 1
    if dweight is not None and weights is not None:
        outputs, size, (splits, taps, *_) = dweight.shape[0], dweight.numel(), weights.shape
    plan.launch(
        finish_bwd_kernel,
        (cdiv(channels, 8) + cdiv(size, 512),),
        num_warps=8,
        sums=sums,
        weights=weights,
        var=norm.var,
        gamma=norm.gamma,
        eps=norm.eps,
        dgamma=dnorm.dgamma,
        dbeta=dnorm.dbeta,
        a=a,
        b=b,
        dweight=dweight,
        R=rows,
        S=splits,
        K=outputs,
        C=channels,
        count=float(count),
        TAPS=taps,
        BLOCK_R=min(1024, next_power_of_2(rows)),
        BLOCK_C=8,
        BLOCK_S=min(4, next_power_of_2(splits)),
        BLOCK_W=512,
    )
