"""BN-ReLU and the average over the image. Rows x [M, C], M = N*H*W, y [N, C]."""

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm, NormGradient
from . import tiles
from ._common import cdiv, load_norm, relu, row_offset
from ._reduce import finish_bwd, finish_norm, sums_into
from .arguments import Arguments
from .plan import Planner, planned


@triton.jit
def head_fwd_kernel(
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    y,  # [N, C] written
    pixels,  # H * W
    C,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for an image and BLOCK_C channels."""
    n = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    shift, scale, b = load_norm(mean, var, gamma, beta, eps, c, c < C)
    total = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for start in range(0, pixels, BLOCK_M):
        m = tl.arange(0, BLOCK_M)
        mask = (m < pixels - start)[:, None] & (c < C)[None, :]
        at = x + row_offset(n * pixels + start, x_stride) + m[:, None] * x_stride + c[None, :]
        values = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        total += tl.where(mask, relu((values - shift[None, :]) * scale[None, :] + b[None, :]), 0.0)
    average = tl.sum(total, 0) / pixels
    tl.store(y + row_offset(n, C) + c, average.to(y.dtype.element_ty), mask=c < C)


@planned("head_fwd")
def head_fwd(plan: Planner, x: Tensor, norm: Norm, y: Tensor) -> None:
    check = Arguments(plan, "x", x)
    norm = check.norm(norm, check.C)
    if not check.averages("y", y).is_contiguous():
        plan.refuse("strides of y", list(y.stride()), "contiguous memory")
    plan.launch(
        head_fwd_kernel,
        (check.N, cdiv(check.C, 64)),
        num_warps=4,
        x=x,
        **norm._asdict(),
        y=y,
        pixels=check.H * check.W,
        C=check.C,
        x_stride=check.stride,
        BLOCK_M=64,
        BLOCK_C=64,
    )


@triton.jit
def head_bwd_kernel(
    dy,  # [N, C]
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    dx,  # [M, C] written
    into,  # what takes sum(v), sum(v * (x - mean)) (_reduce.py)
    arrivals,
    a,  # [C] added to, or None
    b,  # [C] added to, or None
    M,
    pixels,  # H * W
    C,
    x_stride,
    dx_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_C channels and every splits-th tile of pixels."""
    split = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    sum_v = tl.zeros((BLOCK_C,), dtype=tl.float32)
    sum_vx = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(split * BLOCK_M, M, tl.num_programs(1) * BLOCK_M):
        mask = (m < M - start)[:, None] & (c < C)[None, :]
        x_at = x + row_offset(start, x_stride) + m[:, None] * x_stride + c[None, :]
        centred = tl.load(x_at, mask=mask, other=0.0).to(tl.float32) - shift[None, :]
        dy_at = dy + row_offset((start + m) // pixels, C)[:, None] + c[None, :]
        v = tl.load(dy_at, mask=mask, other=0.0).to(tl.float32) / pixels
        v = tl.where(centred * scale[None, :] + offset[None, :] <= 0.0, 0.0, v)  # passes NaN's gradient, as PyTorch
        dx_at = dx + row_offset(start, dx_stride) + m[:, None] * dx_stride + c[None, :]
        tl.store(dx_at, (scale[None, :] * v).to(dx.dtype.element_ty), mask=mask)
        sum_v += tl.sum(v, 0)
        sum_vx += tl.sum(v * centred, 0)
    rows, slab = tl.num_programs(1), tl.program_id(0)
    finish_norm(into, arrivals, a, b, split, rows, slab, sum_v, sum_vx, var, gamma, eps, c, c < C, C, M, BLOCK_C)


@planned("head_bwd")
def head_bwd(plan: Planner, dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
    check = Arguments(plan, "x", x)
    norm, dnorm = check.norm(norm, check.C), check.gradient_of(dnorm)
    dy = plan.contiguous(check.averages("dy", dy))
    dx_stride = check.image("dx", dx, check.C)
    slabs = cdiv(check.C, 64)
    splits = tiles.splits(plan.device, slabs, check.M, 64, check.M, resident=8)
    into = sums_into(plan, dnorm, splits, slabs)
    plan.launch(
        head_bwd_kernel,
        (slabs, splits),
        num_warps=4,
        dy=dy,
        x=x,
        **norm._asdict(),
        dx=dx,
        **into,
        M=check.M,
        pixels=check.H * check.W,
        C=check.C,
        x_stride=check.stride,
        dx_stride=dx_stride,
        BLOCK_M=64,
        BLOCK_C=64,
    )
    finish_bwd(plan, norm, check.M, **into)
