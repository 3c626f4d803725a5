"""BN-ReLU-maxpool 3x3, stride 2, padding 1.

Rows: x [N*H*W, C], y [N*P*Q, C], P = (H + 1) // 2, Q = (W + 1) // 2. What is pooled is rounded to x's dtype first, as
in PyTorch, so that ties fall to the same position: the first maximum in scan order, or the last NaN.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm, NormGradient
from . import tiles
from ._common import cdiv, load_norm, relu, replaced, row_offset
from ._reduce import finish_bwd, finish_norm, merge_stats, stats_into, sums_into, tile_stats
from .arguments import Arguments
from .plan import Planner, planned


@triton.jit
def load_activated(
    x,  # [N*H*W, C] from a tile's first pixel on
    pixel,  # [BLOCK_M] rows of x from there
    inside,  # [BLOCK_M] which of them are in the image
    c,  # [BLOCK_C]
    C,
    x_stride,
    shift,  # [BLOCK_C]
    scale,  # [BLOCK_C]
    b,  # [BLOCK_C]
):
    """relu(bn(x)) rounded, -inf outside the image; and x - mean. [BLOCK_M, BLOCK_C], float32."""
    mask = inside[:, None] & (c < C)[None, :]
    values = tl.load(x + pixel[:, None] * x_stride + c[None, :], mask=mask, other=0.0)
    centred = values.to(tl.float32) - shift[None, :]
    activated = relu(centred * scale[None, :] + b[None, :]).to(values.dtype).to(tl.float32)
    return tl.where(mask, activated, float("-inf")), centred


@triton.jit
def stem_fwd_kernel(
    x,  # [N*H*W, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    y,  # [N*P*Q, C] written
    stats,  # of y, or None (_reduce.py)
    arrivals,
    M,  # N * P * Q
    H,
    W,
    P,
    Q,
    C,
    x_stride,
    y_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_M windows and BLOCK_C channels."""
    tile = tl.program_id(0)
    start = tile * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = (start + m) // Q  # of windows, n * P + p
    h, w = row % P * 2, (start + m) % Q * 2  # the window's centre
    first = (start // Q // P * H + start // Q % P * 2) * W
    pixel = (row // P * H + h) * W + w - first
    shift, scale, b = load_norm(mean, var, gamma, beta, eps, c, c < C)
    best = tl.full((BLOCK_M, BLOCK_C), float("-inf"), dtype=tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            inside = (start + m < M) & (h + i >= 1) & (h + i <= H) & (w + j >= 1) & (w + j <= W)
            at = pixel + (i - 1) * W + j - 1
            value, _ = load_activated(x + row_offset(first, x_stride), at, inside, c, C, x_stride, shift, scale, b)
            best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    n = tl.minimum(M - start, BLOCK_M)
    mask = (m < n)[:, None] & (c < C)[None, :]
    tl.store(
        y + row_offset(start, y_stride) + m[:, None] * y_stride + c[None, :], best.to(y.dtype.element_ty), mask=mask
    )
    if stats is not None:
        rows, slab = tl.num_programs(0), tl.program_id(1)
        tile_stats(stats, arrivals, tile, rows, slab, best, mask, n, c, c < C, C, 0, BLOCK_C)


@planned("stem_fwd")
def stem_fwd(plan: Planner, x: Tensor, norm: Norm, y: Tensor, stats: Tensor | None) -> None:
    check = Arguments(plan, "x", x)
    norm = check.norm(norm, check.C)
    height, width = (check.H + 1) // 2, (check.W + 1) // 2
    y_stride = check.image("y", y, check.C, height, width)
    windows = check.N * height * width
    grid = cdiv(windows, 128), cdiv(check.C, 64)
    into = stats_into(plan, check.stats(stats, check.C), *grid)
    plan.launch(
        stem_fwd_kernel,
        grid,
        num_warps=8,
        x=x,
        **norm._asdict(),
        y=y,
        **into,
        M=windows,
        H=check.H,
        W=check.W,
        P=height,
        Q=width,
        C=check.C,
        x_stride=check.stride,
        y_stride=y_stride,
        BLOCK_M=128,
        BLOCK_C=64,
    )
    merge_stats(plan, **into)


@triton.jit
def stem_bwd_kernel(
    dy,  # [N*P*Q, C]
    x,  # [N*H*W, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    dx,  # [N*H*W, C] written
    into,  # what takes sum(v), sum(v * (x - mean)) (_reduce.py)
    arrivals,
    a,  # [C] added to, or None
    b,  # [C] added to, or None
    M,  # N * P * Q
    H,
    W,
    P,
    Q,
    C,
    dy_stride,
    x_stride,
    dx_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_C channels and every splits-th tile of quads.

    Quad (p, q), the pixels 2p, 2p + 1 by 2q, 2q + 1, has its gradients from the windows p, p + 1 by q, q + 1, whose
    maxima are found again among the 5x5 pixels they cover.
    """
    split = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.arange(0, BLOCK_M)
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    sum_v = tl.zeros((BLOCK_C,), dtype=tl.float32)
    sum_vx = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(split * BLOCK_M, M, tl.num_programs(1) * BLOCK_M):
        exists = start + m < M
        row = (start + m) // Q
        p, q = row % P, (start + m) % Q
        first = (start // Q // P * H + start // Q % P * 2) * W
        pixel = (row // P * H + p * 2) * W + q * 2 - first
        x_at = x + row_offset(first, x_stride)
        best = (tl.full((BLOCK_M, BLOCK_C), float("-inf"), dtype=tl.float32),) * 4
        position = (tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.int32),) * 4
        for i in tl.static_range(5):  # rows 2p - 1 + i
            for j in tl.static_range(5):
                h, w = p * 2 + i, q * 2 + j
                inside = exists & (h >= 1) & (h <= H) & (w >= 1) & (w <= W)
                at = pixel + (i - 1) * W + j - 1
                value, _ = load_activated(x_at, at, inside, c, C, x_stride, shift, scale, offset)
                for down in tl.static_range(max(i - 1, 0) // 2, min(i // 2, 1) + 1):  # windows p + down cover row i
                    for right in tl.static_range(max(j - 1, 0) // 2, min(j // 2, 1) + 1):
                        taken = (value > best[2 * down + right]) | (value != value)
                        greater = tl.where(taken, value, best[2 * down + right])
                        best = replaced(best, 2 * down + right, greater)
                        here = tl.where(taken, (i - 2 * down) * 3 + j - 2 * right, position[2 * down + right])
                        position = replaced(position, 2 * down + right, here)
        for i in tl.static_range(2):
            for j in tl.static_range(2):
                v = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
                for down in tl.static_range(i + 1):
                    for right in tl.static_range(j + 1):
                        mask = (exists & (p + down < P) & (q + right < Q))[:, None] & (c < C)[None, :]
                        window = m + down * Q + right
                        dy_at = dy + row_offset(start, dy_stride) + window[:, None] * dy_stride + c[None, :]
                        chosen = position[2 * down + right] == (i + 1 - 2 * down) * 3 + j + 1 - 2 * right
                        v += tl.where(chosen, tl.load(dy_at, mask=mask, other=0.0).to(tl.float32), 0.0)
                inside = exists & (p * 2 + i < H) & (q * 2 + j < W)
                at = pixel + i * W + j
                value, centred = load_activated(x_at, at, inside, c, C, x_stride, shift, scale, offset)
                v = tl.where(value <= 0.0, 0.0, v)  # passes NaN's gradient, as PyTorch
                dx_at = dx + row_offset(first, dx_stride) + at[:, None] * dx_stride + c[None, :]
                written = inside[:, None] & (c < C)[None, :]
                tl.store(dx_at, (scale[None, :] * v).to(dx.dtype.element_ty), mask=written)
                sum_v += tl.sum(v, 0)
                sum_vx += tl.sum(v * centred, 0)
    rows, slab, count, exists = tl.num_programs(1), tl.program_id(0), M // (P * Q) * H * W, c < C
    finish_norm(into, arrivals, a, b, split, rows, slab, sum_v, sum_vx, var, gamma, eps, c, exists, C, count, BLOCK_C)


@planned("stem_bwd")
def stem_bwd(plan: Planner, dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
    check = Arguments(plan, "x", x)
    norm, dnorm = check.norm(norm, check.C), check.gradient_of(dnorm)
    height, width = (check.H + 1) // 2, (check.W + 1) // 2
    dy_stride = check.image("dy", dy, check.C, height, width)
    dx_stride = check.image("dx", dx, check.C)
    quads, slabs = check.N * height * width, cdiv(check.C, 64)
    splits = tiles.splits(plan.device, slabs, quads, 16, quads, resident=8)
    into = sums_into(plan, dnorm, splits, slabs)
    plan.launch(
        stem_bwd_kernel,
        (slabs, splits),
        num_warps=8,
        dy=dy,
        x=x,
        **norm._asdict(),
        dx=dx,
        **into,
        M=quads,
        H=check.H,
        W=check.W,
        P=height,
        Q=width,
        C=check.C,
        dy_stride=dy_stride,
        x_stride=check.stride,
        dx_stride=dx_stride,
        BLOCK_M=16,
        BLOCK_C=64,
    )
    finish_bwd(plan, norm, check.M, **into)
