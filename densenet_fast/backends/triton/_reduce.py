"""Partial results merged in a fixed order, and what follows from them: within the launch that made them, or the next.

Forward: tile statistics to mean and variance. Backward: sums to gradients of gamma and beta and to the deferred
correction. docs/internals/algorithm.md, "Deferred correction".

Statistics and sums of a slab of channels are merged by the programs that made them, of which each leaves a row: the
last of a group of programs to arrive merges the group's, the last group to arrive those of the groups.
docs/internals/triton.md, "Reductions".
"""

from math import isqrt
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm, NormGradient
from ._common import cdiv, row_offset
from ._partial import Partial, rows_of_programs, sum_rows, sum_weight
from .arguments import Pair
from .plan import Planner

ONE_GROUP = 64  # rows that one program merges at once
WAVES = 48  # programs for each multiprocessor, of which more leave merging to a launch: to arrive takes each some time


@triton.jit
def last_to_arrive(
    arrivals,  # counter, zero before the first arrives and behind the last
    expected,
):
    """Whether this is the last of so many programs, which may read what all of them stored before."""
    tl.debug_barrier()  # one thread arrives for the program: what the others stored comes before
    is_last = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == expected - 1
    if is_last:
        tl.store(arrivals, 0)
    return is_last


@triton.jit
def _store_row(
    rows,  # [R, 2, C]
    row,
    first,  # [BLOCK_C]
    second,  # [BLOCK_C]
    c,  # [BLOCK_C] channels
    mask,  # [BLOCK_C] which of them exist
    C,
):
    at = rows + row_offset(row, 2 * C) + c
    tl.store(at, first, mask=mask)
    tl.store(at + C, second, mask=mask)


@triton.jit
def _merged_stats(
    partial,  # [R, 2, C] mean and sum of squared deviations of each tile, or group of tiles
    count,  # [R] values in each
    first,  # row
    size,  # rows
    c,  # [BLOCK_C]
    mask,  # [BLOCK_C]
    C,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Chan, Golub and LeVeque 1983: the merged mean first, then deviations from it. And the number of values."""
    at = partial + row_offset(first, 2 * C) + c[None, :]
    numbers = tl.zeros((BLOCK_R,), dtype=tl.float32)
    sums = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for start in range(0, size, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        valid = (r < size)[:, None] & mask[None, :]
        n = tl.load(count + first + r, mask=r < size, other=0.0)
        numbers += n
        sums += n[:, None] * tl.load(at + r[:, None].to(tl.int64) * (2 * C), mask=valid, other=0.0)
    total = tl.sum(numbers, 0)
    mean = tl.sum(sums, 0) / total
    squares = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for start in range(0, size, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        valid = (r < size)[:, None] & mask[None, :]
        n = tl.load(count + first + r, mask=r < size, other=0.0)
        row = at + r[:, None].to(tl.int64) * (2 * C)
        deviation = tl.load(row, mask=valid, other=0.0) - mean[None, :]
        squares += tl.load(row + C, mask=valid, other=0.0) + n[:, None] * deviation * deviation
    return mean, tl.sum(squares, 0), total


@triton.jit
def finish_stats(
    stats,  # of `stats_into`
    arrivals,  # its counters, or None where `merge_stats` follows
    row,  # this program's
    rows,  # one of each program of the slab
    slab,
    mean,  # [BLOCK_C] of what the program has
    squares,  # [BLOCK_C] sums of squared deviations
    n,  # values of each channel
    c,  # [BLOCK_C] the slab's channels
    mask,  # [BLOCK_C] which of them exist
    C,
    BLOCK_C: tl.constexpr,
):
    """The statistics of a slab of channels, by the last program to arrive."""
    partial, count, group, mean_at, var_at = stats
    BLOCK_R: tl.constexpr = 4096 // BLOCK_C
    _store_row(partial, row, mean, squares, c, mask, C)
    if arrivals is None:
        tl.store(count + row, n, mask=slab == 0)
    else:
        groups = tl.cdiv(rows, group)
        count += slab * (rows + groups)  # its own: of other slabs it does not know what has been stored
        arrivals += slab * (groups + 1)
        tl.store(count + row, n)
        first = row // group * group
        size = tl.minimum(group, rows - first)
        is_last = last_to_arrive(arrivals + row // group, size)
        if is_last & (groups > 1):
            mean, squares, n = _merged_stats(partial, count, first, size, c, mask, C, BLOCK_C, BLOCK_R)
            _store_row(partial, rows + row // group, mean, squares, c, mask, C)
            tl.store(count + rows + row // group, n)
            first, size = rows, groups
            is_last = last_to_arrive(arrivals + groups, groups)
        if is_last:
            mean, squares, n = _merged_stats(partial, count, first, size, c, mask, C, BLOCK_C, BLOCK_R)
            tl.store(mean_at + c, mean, mask=mask)
            tl.store(var_at + c, squares / n, mask=mask)


@triton.jit
def tile_stats(
    stats,
    arrivals,
    row,
    rows,
    slab,
    z,  # [BLOCK_C, BLOCK_M] float32 if AXIS is 1, else [BLOCK_M, BLOCK_C]: the program's tile
    valid,  # z's shape, or broadcast to it: which values exist
    n,  # how many of each channel
    c,
    mask,
    C,
    AXIS: tl.constexpr,  # along which the pixels run
    BLOCK_C: tl.constexpr,
):
    """Statistics of a tile, in two passes over registers (docs/internals/algorithm.md, "Numerics"); and of all."""
    size = n.to(tl.float32)
    mean = tl.sum(tl.where(valid, z, 0.0), AXIS) / size
    deviation = tl.where(valid, z - tl.expand_dims(mean, AXIS), 0.0)
    squares = tl.sum(deviation * deviation, AXIS)
    finish_stats(stats, arrivals, row, rows, slab, mean, squares, size, c, mask, C, BLOCK_C)


@triton.jit
def merge_stats_kernel(
    partial,  # [R, 2, C]
    count,  # [R]
    mean,  # [C] written
    var,  # [C] written, biased
    R,
    C,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    merged, squares, n = _merged_stats(partial, count, 0, R, c, c < C, C, BLOCK_C, BLOCK_R)
    tl.store(mean + c, merged, mask=c < C)
    tl.store(var + c, squares / n, mask=c < C)


def stats_into(plan: Planner, into: Pair | None, rows: int, slabs: int, room: bool = True) -> dict[str, Any]:
    """What `finish_stats` takes, for so many programs of each slab, if they have `room` in registers to arrive; None if
    no statistics are wanted."""
    if into is None:
        return {"stats": None, "arrivals": None}
    mean, var = into
    arrivals, group, more = _arrivals(plan, rows, slabs, room)
    partial = plan.empty(rows + more, 2, mean.shape[0])
    count = plan.empty(1 if arrivals is None else slabs, rows + more)
    return {"stats": (partial, count, group, mean, var), "arrivals": arrivals}


def merge_stats(plan: Planner, stats: tuple[Any, ...] | None, arrivals: Tensor | None) -> None:
    """What `finish_stats` leaves, where that is not all."""
    if stats is None or arrivals is not None:
        return
    partial, count, _, mean, var = stats
    plan.launch(
        merge_stats_kernel,
        (cdiv(mean.shape[0], 8),),
        num_warps=8,
        partial=partial,
        count=count,
        mean=mean,
        var=var,
        R=partial.shape[0],
        C=mean.shape[0],
        BLOCK_C=8,
        BLOCK_R=512,
    )


def _arrivals(plan: Planner, rows: int, slabs: int, room: bool = True) -> tuple[Tensor | None, int, int]:
    """Counters, or None where so many programs leave the rest to another launch; rows in a group, and how many more the
    groups leave."""
    if not room or rows * slabs > WAVES * plan.device.processors:
        return None, rows, 0
    group = rows if rows <= ONE_GROUP else isqrt(rows - 1) + 1
    groups = cdiv(rows, group)
    return plan.counters(slabs * (groups + 1)), group, groups


@triton.jit
def _store_norm(
    sum_v,  # [BLOCK_C]
    sum_vx,  # [BLOCK_C]
    dgamma,
    dbeta,
    a,
    b,
    var,
    gamma,
    eps,
    count,
    c,  # [BLOCK_C]
    mask,  # [BLOCK_C]
):
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


@triton.jit
def finish_norm(
    into,  # of `sums_into`
    arrivals,  # its counters, or None where `finish_bwd` follows
    a,  # [C] added to, or None
    b,  # [C] added to, or None
    row,  # this program's
    rows,  # one of each program of the slab
    slab,
    sum_v,  # [BLOCK_C] its sum(v)
    sum_vx,  # [BLOCK_C] sum(v * (x - mean))
    var,  # [C]
    gamma,  # [C] or None
    eps,
    c,  # [BLOCK_C] the slab's channels
    mask,  # [BLOCK_C] which of them exist
    C,
    count,  # values of a channel
    BLOCK_C: tl.constexpr,
):
    """The gradients of gamma and beta of a slab of channels, and their correction, by the last program to arrive."""
    sums, group, dgamma, dbeta = into
    BLOCK_R: tl.constexpr = 4096 // BLOCK_C
    _store_row(sums, row, sum_v, sum_vx, c, mask, C)
    if arrivals is not None:
        groups = tl.cdiv(rows, group)
        arrivals += slab * (groups + 1)
        first = row // group * group
        size = tl.minimum(group, rows - first)
        is_last = last_to_arrive(arrivals + row // group, size)
        if is_last & (groups > 1):
            at = sums + row_offset(first, 2 * C)
            sum_v = sum_rows(at, size, 2 * C, c, mask, BLOCK_C, BLOCK_R)
            sum_vx = sum_rows(at + C, size, 2 * C, c, mask, BLOCK_C, BLOCK_R)
            _store_row(sums, rows + row // group, sum_v, sum_vx, c, mask, C)
            first, size = rows, groups
            is_last = last_to_arrive(arrivals + groups, groups)
        if is_last:
            at = sums + row_offset(first, 2 * C)
            sum_v = sum_rows(at, size, 2 * C, c, mask, BLOCK_C, BLOCK_R)
            sum_vx = sum_rows(at + C, size, 2 * C, c, mask, BLOCK_C, BLOCK_R)
            _store_norm(sum_v, sum_vx, dgamma, dbeta, a, b, var, gamma, eps, count, c, mask)


@triton.jit
def finish_bwd_kernel(
    sums,  # [R, 2, C]
    var,  # [C]
    gamma,  # [C] or None
    eps,
    dgamma,  # [C] written
    dbeta,  # [C] written
    a,  # [C] added to, or None
    b,  # [C] added to, or None
    weights,  # [splits, weight_stride] partial gradients of the weight, or None
    dweight,  # [K, C, TAPS] written, or None
    splits,
    weight_stride,
    R,
    K,
    C,
    count,  # values of a channel
    TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The first programs add up the weight's gradient."""
    adding = 0
    if weights is not None:
        adding = rows_of_programs(weight_stride)
    if tl.program_id(0) < adding:
        if weights is not None:
            sum_weight(weights, dweight, splits, weight_stride, K, C, TAPS)
    else:
        c = (tl.program_id(0) - adding) * BLOCK_C + tl.arange(0, BLOCK_C)
        sum_v = sum_rows(sums, R, 2 * C, c, c < C, BLOCK_C, BLOCK_R)
        sum_vx = sum_rows(sums + C, R, 2 * C, c, c < C, BLOCK_C, BLOCK_R)
        _store_norm(sum_v, sum_vx, dgamma, dbeta, a, b, var, gamma, eps, count, c, c < C)


def sums_into(plan: Planner, dnorm: NormGradient, rows: int, slabs: int, room: bool = True) -> dict[str, Any]:
    """What `finish_norm` takes, for so many programs of each slab, if they have `room` in registers to arrive."""
    a, b = (None, None) if dnorm.correction is None else dnorm.correction
    arrivals, group, more = _arrivals(plan, rows, slabs, room)
    sums = plan.empty(rows + more, 2, dnorm.dgamma.shape[0])
    return {"into": (sums, group, dnorm.dgamma, dnorm.dbeta), "arrivals": arrivals, "a": a, "b": b}


def finish_bwd(
    plan: Planner,
    norm: Norm,
    count: int,
    into: tuple[Any, ...],
    arrivals: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    partial: Partial | None = None,
) -> None:
    """What `finish_norm` leaves, where that is not all, and with it the weight's gradient."""
    if arrivals is not None:
        return
    sums, _, dgamma, dbeta = into
    plan.launch(
        finish_bwd_kernel,
        (Partial.programs(partial, 1) + cdiv(dgamma.shape[0], 8),),
        num_warps=8,
        sums=sums,
        var=norm.var,
        gamma=norm.gamma,
        eps=norm.eps,
        dgamma=dgamma,
        dbeta=dbeta,
        a=a,
        b=b,
        **Partial.arguments(partial),
        R=sums.shape[0],
        K=partial.dweight.shape[0] if partial else 0,
        C=dgamma.shape[0],
        count=count,
        TAPS=partial.dweight[0, 0].numel() if partial else 1,
        BLOCK_C=8,
        BLOCK_R=512,
    )
