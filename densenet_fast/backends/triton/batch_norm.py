"""Kernels of ops/batch_norm.py: statistics, the deferred correction, running averages.

Activations are rows [M, C], M = N*H*W, at any row stride.
"""

from typing import NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops._operation import image, vectors
from ._common import cdiv, row_offset, store_stats, workspace
from ._reduce import merge_stats
from .arguments import Arguments
from .launch import launch

NORMS = 16  # updated by one launch: as many sets of pointers fit among a kernel's arguments


@triton.jit
def channel_stats_kernel(
    x,  # [M, C]
    partial,  # [cdiv(M, BLOCK_M), 2, C]
    count,  # [cdiv(M, BLOCK_M)]
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
    store_stats(partial, count, tile, values, valid, n, c, c < C, C, tl.program_id(1) == 0, 0)


def channel_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    check = Arguments("channel_stats", "x", x)
    mean, var = vectors(x)
    rows = 128
    tiles = cdiv(check.M, rows)
    partial, count = workspace(x, tiles * 2 * check.C, tiles)
    launch(
        channel_stats_kernel,
        (tiles, cdiv(check.C, 64)),
        num_warps=4,
        x=x,
        partial=partial,
        count=count,
        M=check.M,
        C=check.C,
        x_stride=check.stride,
        BLOCK_M=rows,
        BLOCK_C=64,
    )
    merge_stats(partial, count, tiles, mean, var, check.M)
    return mean, var


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


def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor) -> Tensor:
    check = Arguments("bn_bwd_apply", "x", x)
    v_stride = check.image("v", v, check.C)
    mean, a, b = (check.vector(n, t, check.C) for n, t in (("mean", mean), ("a", a), ("b", b)))
    dx = image(x, *x.shape[1:])
    launch(
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
        dx_stride=check.C,
        BLOCK_M=64,
        BLOCK_C=64,
    )
    return dx


@triton.jit
def update_running_stats_kernel(
    running_mean,  # NORMS of [C], written
    running_var,  # NORMS of [C], written
    mean,  # NORMS of [C]
    var,  # NORMS of [C]
    channels,  # NORMS integers, 0 where there is no norm
    keep,  # NORMS floats, 1 - momentum
    momentum,  # NORMS floats
    unbiased,  # NORMS floats, momentum * count / (count - 1)
    NORMS: tl.constexpr,
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


def update_running_stats(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    mean: list[Tensor],
    var: list[Tensor],
    count: list[int],
    momentum: list[float],
) -> None:
    """One launch for every 16 norms."""
    channels = _check_running(running_mean, running_var, mean, var, count, momentum)
    keep = [1 - m for m in momentum]
    unbiased = [m * n / (n - 1) for m, n in zip(momentum, count, strict=True)]
    for i in range(0, len(channels), NORMS):
        missing = max(0, i + NORMS - len(channels))

        def group(values: list, filling: object, i: int = i, missing: int = missing) -> tuple:
            return (*values[i : i + NORMS], *(filling,) * missing)

        launch(
            update_running_stats_kernel,
            (min(NORMS, len(channels) - i), cdiv(max(channels[i : i + NORMS]), 256)),
            num_warps=1,
            running_mean=group(running_mean, running_mean[i]),
            running_var=group(running_var, running_var[i]),
            mean=group(mean, mean[i]),
            var=group(var, var[i]),
            channels=group(channels, 0),
            keep=group(keep, 0.0),
            momentum=group(momentum, 0.0),
            unbiased=group(unbiased, 0.0),
            NORMS=NORMS,
            BLOCK_C=256,
        )


def _check_running(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    mean: list[Tensor],
    var: list[Tensor],
    count: list[int],
    momentum: list[float],
) -> list[int]:
    """The channels of every norm."""

    def refuse(what: str, got: object, expected: object) -> NoReturn:
        raise RuntimeError(f"densenet_fast::update_running_stats: wrong {what}: got {got}, expected {expected}")

    for values in (running_var, mean, var, count, momentum):
        if len(values) != len(running_mean):
            refuse("length of a list", len(values), len(running_mean))
    for norm in zip(running_mean, running_var, mean, var, strict=True):
        for name, x in zip(("running_mean", "running_var", "mean", "var"), norm, strict=True):
            if x.dim() != 1 or x.shape != norm[0].shape:
                refuse(f"sizes of {name}", list(x.shape), list(norm[0].shape) if norm[0].dim() == 1 else "[C]")
            if x.device != norm[0].device:
                refuse(f"device of {name}", x.device, norm[0].device)
            if not x.is_contiguous():
                refuse(f"strides of {name}", list(x.stride()), "[1]")
            if name in ("mean", "var") and x.dtype != torch.float32:
                refuse(f"dtype of {name}", x.dtype, torch.float32)
    return [x.shape[0] for x in running_mean]
