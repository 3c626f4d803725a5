"""Statistics, the deferred correction, running averages.

Activations are rows [M, C], M = N*H*W, at any row stride.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import cdiv, row_offset
from ._reduce import merge_stats, stats_into, tile_stats
from .arguments import Arguments
from .plan import Planner, Slot, planned

NORMS = 32  # updated by one launch: as many sets of pointers fit among a kernel's arguments


@triton.jit
def channel_stats_kernel(
    x,  # [M, C]
    stats,  # of x (_reduce.py)
    arrivals,
    M,
    C,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tile = tl.program_id(0)
    start = tile * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.minimum(M - start, BLOCK_M)
    valid = (m < n)[:, None] & (c < C)[None, :]
    at = x + row_offset(start, x_stride) + m[:, None] * x_stride + c[None, :]
    values = tl.load(at, mask=valid, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_C]
    rows, slab = tl.num_programs(0), tl.program_id(1)
    tile_stats(stats, arrivals, tile, rows, slab, values, valid, n, c, c < C, C, 0, BLOCK_C)


@planned("channel_stats")
def channel_stats(plan: Planner, x: Tensor, stats: Tensor) -> None:
    check = Arguments(plan, "x", x)
    rows = 128
    grid = cdiv(check.M, rows), cdiv(check.C, 64)
    # To arrive would spill on sm_100, and save no launch: one would clear the counters.
    into = stats_into(plan, check.pair("stats", stats, check.C), *grid, room=False)
    plan.launch(
        channel_stats_kernel,
        grid,
        num_warps=4,
        x=x,
        **into,
        M=check.M,
        C=check.C,
        x_stride=check.stride,
        BLOCK_M=rows,
        BLOCK_C=64,
    )
    merge_stats(plan, **into)


@triton.jit
def bn_bwd_apply_kernel(
    v,  # [M, C]
    x,  # [M, C]
    mean,  # [C]
    a,  # [C]
    b,  # [C]
    dx,  # [M, C] written
    M,
    C,
    v_stride,
    x_stride,
    dx_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dx = v - a - b * (x - mean)"""
    start = tl.program_id(0) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < C
    mask = (m < M - start)[:, None] & exists[None, :]
    v_at = v + row_offset(start, v_stride) + m[:, None] * v_stride + c[None, :]
    x_at = x + row_offset(start, x_stride) + m[:, None] * x_stride + c[None, :]
    dx_at = dx + row_offset(start, dx_stride) + m[:, None] * dx_stride + c[None, :]
    centred = tl.load(x_at, mask=mask).to(tl.float32) - tl.load(mean + c, mask=exists)[None, :]
    corrected = tl.load(v_at, mask=mask).to(tl.float32) - tl.load(a + c, mask=exists)[None, :]
    corrected -= tl.load(b + c, mask=exists)[None, :] * centred
    tl.store(dx_at, corrected.to(dx.dtype.element_ty), mask=mask)


@planned("bn_bwd_apply")
def bn_bwd_apply(plan: Planner, v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, dx: Tensor) -> None:
    check = Arguments(plan, "x", x)
    v_stride, dx_stride = check.image("v", v, check.C), check.image("dx", dx, check.C)
    mean, (a, b) = check.vector("mean", mean, check.C), check.pair("correction", correction, check.C)
    plan.launch(
        bn_bwd_apply_kernel,
        (cdiv(check.M, 64), cdiv(check.C, 64)),
        num_warps=4,
        v=v,
        x=x,
        mean=mean,
        a=a,
        b=b,
        dx=dx,
        M=check.M,
        C=check.C,
        v_stride=v_stride,
        x_stride=check.stride,
        dx_stride=dx_stride,
        BLOCK_M=64,
        BLOCK_C=64,
    )


@triton.jit
def update_running_stats_kernel(
    running_mean,  # NORMS of [C], written
    running_var,  # NORMS of [C], written
    num_batches_tracked,  # NORMS integers, written if COUNTS
    mean,  # NORMS of [C]
    var,  # NORMS of [C]
    channels,  # NORMS integers, 0 where there is no norm
    keep,  # NORMS floats, 1 - momentum
    momentum,  # NORMS floats
    unbiased,  # NORMS floats, momentum * count / (count - 1)
    NORMS: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for each norm and BLOCK_C channels."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    for i in tl.static_range(NORMS):
        if tl.program_id(0) == i:
            mask = c < channels[i]
            old_mean = tl.load(running_mean[i] + c, mask=mask).to(tl.float32)
            old_var = tl.load(running_var[i] + c, mask=mask).to(tl.float32)
            new_mean = keep[i] * old_mean + momentum[i] * tl.load(mean[i] + c, mask=mask)
            new_var = keep[i] * old_var + unbiased[i] * tl.load(var[i] + c, mask=mask)
            tl.store(running_mean[i] + c, new_mean.to(running_mean[i].dtype.element_ty), mask=mask)
            tl.store(running_var[i] + c, new_var.to(running_var[i].dtype.element_ty), mask=mask)
            if COUNTS:
                # Of a vector, so that the thread that reads it writes it.
                batches = tl.load(num_batches_tracked[i] + c, mask=c == 0, other=0)
                tl.store(num_batches_tracked[i] + c, batches + 1, mask=c == 0)


def update_running_stats(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    num_batches_tracked: list[Tensor],
    stats: Tensor,
    begins: list[int],
    count: int,
    momentum: list[float],
) -> None:
    unbiased = count / max(1, count - 1)
    factors = [*[1 - m for m in momentum], *momentum, *[m * unbiased for m in momentum]]
    _update(running_mean, running_var, num_batches_tracked, stats, begins, count, factors)


@planned("update_running_stats", varying="momentum")
def _update(
    plan: Planner,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    num_batches_tracked: list[Tensor],
    stats: Tensor,
    begins: list[int],
    count: int,
    factors: list[Slot],
) -> None:
    """One launch for every 32 norms. factors: 1 - momentum of all norms, then momentum, then that of the variance."""
    channels = _check_running(plan, running_mean, running_var, stats, begins, count, len(factors))
    _check_counts(plan, num_batches_tracked, len(channels))
    mean, var = ([row[b : b + c] for b, c in zip(begins, channels, strict=True)] for row in stats)
    counters: Sequence[Tensor | None] = num_batches_tracked or [None] * len(channels)
    keep, momentum, unbiased = (factors[i * len(channels) : (i + 1) * len(channels)] for i in range(3))
    for i in range(0, len(channels), NORMS):
        missing = max(0, i + NORMS - len(channels))

        def group(values: Sequence, filling: object, i: int = i, missing: int = missing) -> tuple:
            return (*values[i : i + NORMS], *(filling,) * missing)

        plan.launch(
            update_running_stats_kernel,
            (min(NORMS, len(channels) - i), cdiv(max(channels[i : i + NORMS]), 256)),
            num_warps=1,
            running_mean=group(running_mean, running_mean[i]),
            running_var=group(running_var, running_var[i]),
            num_batches_tracked=group(counters, counters[i]),
            mean=group(mean, mean[i]),
            var=group(var, var[i]),
            channels=group(channels, 0),
            keep=group(keep, 0.0),
            momentum=group(momentum, 0.0),
            unbiased=group(unbiased, 0.0),
            NORMS=NORMS,
            COUNTS=bool(num_batches_tracked),
            BLOCK_C=256,
        )


def _check_counts(plan: Planner, num_batches_tracked: list[Tensor], norms: int) -> None:
    if len(num_batches_tracked) not in (0, norms):
        plan.refuse("length of num_batches_tracked", len(num_batches_tracked), f"{norms} or 0")
    for x in num_batches_tracked:
        if x.dtype != torch.int64:
            plan.refuse("dtype of num_batches_tracked", x.dtype, torch.int64)
        if x.numel() != 1:
            plan.refuse("sizes of num_batches_tracked", list(x.shape), "one value")


def _check_running(
    plan: Planner,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    stats: Tensor,
    begins: list[int],
    count: int,
    factors: int,
) -> list[int]:
    """The channels of every norm."""
    if count < 2:
        plan.refuse("count", count, "two values or more for each channel, which have a variance")
    for name, length in (("running_var", len(running_var)), ("begins", len(begins)), ("momentum", factors // 3)):
        if length != len(running_mean):
            plan.refuse(f"length of {name}", length, len(running_mean))
    if stats.dtype != torch.float32:
        plan.refuse("dtype of stats", stats.dtype, torch.float32)
    if stats.dim() != 2 or stats.shape[0] != 2:
        plan.refuse("sizes of stats", list(stats.shape), "[2, S]")
    if stats.shape[1] > 1 and stats.stride(1) != 1:
        plan.refuse("strides of stats", list(stats.stride()), "rows of contiguous memory")
    for mean, var, begin in zip(running_mean, running_var, begins, strict=True):
        for name, x in (("running_mean", mean), ("running_var", var)):
            if not x.is_floating_point():
                plan.refuse(f"dtype of {name}", x.dtype, "a floating dtype")
            if x.dim() != 1 or x.shape != mean.shape:
                plan.refuse(f"sizes of {name}", list(x.shape), list(mean.shape) if mean.dim() == 1 else "[C]")
            if not x.is_contiguous():
                plan.refuse(f"strides of {name}", list(x.stride()), "[1]")
        if not 0 <= begin <= stats.shape[1] - mean.shape[0]:
            plan.refuse("begins", f"{begin} of {mean.shape[0]} channels", f"a range within {stats.shape[1]} columns")
    return [x.shape[0] for x in running_mean]
