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
    x_at,  # [BLOCK_M, BLOCK_C] addresses
    mask,  # [BLOCK_M, BLOCK_C] which of them are read
    shift,  # [BLOCK_C]
    scale,  # [BLOCK_C]
    b,  # [BLOCK_C]
):
    """relu(bn(x)) rounded; and x - mean. [BLOCK_M, BLOCK_C], float32."""
    values = tl.load(x_at, mask=mask, other=0.0)
    centred = values.to(tl.float32) - shift[None, :]
    return relu(centred * scale[None, :] + b[None, :]).to(values.dtype).to(tl.float32), centred


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
            at = (pixel + (i - 1) * W + j - 1)[:, None] * x_stride + c[None, :]
            mask = inside[:, None] & (c < C)[None, :]
            value, _ = load_activated(x + row_offset(first, x_stride) + at, mask, shift, scale, b)
            value = tl.where(mask, value, float("-inf"))
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
def row_maxima(
    x_at,  # [BLOCK_M, BLOCK_C] addresses of a row's pixels 2q
    inside,  # [BLOCK_M] whether the image has them
    w,  # [BLOCK_M] 2q
    W,
    c,  # [BLOCK_C]
    C,
    x_stride,
    shift,  # [BLOCK_C]
    scale,  # [BLOCK_C]
    b,  # [BLOCK_C]
):
    """Of the three pixels that the row has of each of the windows q and q + 1: their maximum, -inf outside the image,
    and its place (0 to 2); x - mean of the pixels 2q and 2q + 1. Pairs of [BLOCK_M, BLOCK_C]."""
    zeros = tl.zeros(x_at.shape, dtype=tl.float32)
    maxima, places, centred = (zeros,) * 2, (zeros.to(tl.int32),) * 2, (zeros,) * 2
    for j in tl.static_range(5):  # columns 2q - 1 + j
        mask = (inside & (w + j >= 1) & (w + j <= W))[:, None] & (c < C)[None, :]
        value, deviation = load_activated(x_at + (j - 1) * x_stride, mask, shift, scale, b)
        if j % 2 == 0:  # the others are the windows' middle columns: there are those or no window
            value = tl.where(mask, value, float("-inf"))
        if j == 1 or j == 2:
            centred = replaced(centred, j - 1, deviation)
        for right in tl.static_range(max(j - 1, 0) // 2, min(j // 2, 1) + 1):  # windows q + right have the column
            if j == 2 * right:
                maxima = replaced(maxima, right, value)
            else:
                taken = (value > maxima[right]) | (value != value)
                maxima = replaced(maxima, right, tl.where(taken, value, maxima[right]))
                places = replaced(places, right, tl.where(taken, j - 2 * right, places[right]))
    return maxima, places, centred


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
    columns,  # N * Q
    depth,  # rows of windows for each program, of P + 1
    count,  # N * H * W
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
    """One program for BLOCK_C channels and BLOCK_M columns of windows, `depth` rows of them from top to bottom.

    Each step finds the maxima of the windows (p, q) and (p, q + 1) again, whose rows of pixels are 2p - 1, 2p and
    2p + 1. With them the gradients of the pixels of the first two, in the columns 2q and 2q + 1, are complete. The last
    is the first of the next step, which takes over its maxima and what its gradients have so far. Two steps before the
    program's own provide these.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = m < columns
    n, q = m // Q, m % Q
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    dy_at = dy + row_offset(n * P * Q + q, dy_stride)[:, None] + c[None, :]
    x_at = x + row_offset(n * H * W + q * 2, x_stride)[:, None] + c[None, :]
    dx_at = dx + row_offset(n * H * W + q * 2, dx_stride)[:, None] + c[None, :]
    zeros = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    sum_v, sum_vx = zeros, zeros
    upper, upper_places, begun = (zeros - float("inf"),) * 2, (zeros.to(tl.int32),) * 2, (zeros,) * 2
    begin = tl.program_id(2) * depth
    for p in range(tl.maximum(begin - 2, 0), tl.minimum(begin + depth, P + 1)):
        row = x_at + row_offset(p * 2 * W, x_stride)
        inside = exists & (p < P)
        middle, middle_places, centred = row_maxima(row, inside, q * 2, W, c, C, x_stride, shift, scale, offset)
        row += row_offset(W, x_stride)
        inside = exists & (p * 2 + 1 < H)
        lower, lower_places, _ = row_maxima(row, inside, q * 2, W, c, C, x_stride, shift, scale, offset)
        gradients, positions, waiting = (zeros,) * 2, (zeros.to(tl.int32),) * 2, (zeros,) * 2
        for right in tl.static_range(2):
            taken = (middle[right] > upper[right]) | (middle[right] != middle[right])
            best = tl.where(taken, middle[right], upper[right])
            position = tl.where(taken, middle_places[right] + 3, upper_places[right])
            lower = replaced(lower, right, tl.where(p * 2 + 1 < H, lower[right], float("-inf")))
            taken = (lower[right] > best) | (lower[right] != lower[right])
            best = tl.where(taken, lower[right], best)
            positions = replaced(positions, right, tl.where(taken, lower_places[right] + 6, position))
            mask = (exists & (p < P) & (q + right < Q))[:, None] & (c < C)[None, :]
            gradient = tl.load(dy_at + row_offset(p * Q, dy_stride) + right * dy_stride, mask=mask, other=0.0)
            passed = tl.where(best <= 0.0, 0.0, gradient.to(tl.float32))  # NaN's gradient, too, as in PyTorch
            gradients = replaced(gradients, right, passed)
        for i in tl.static_range(3):
            for j in tl.static_range(2):
                v = tl.where(positions[0] == 3 * i + j + 1, gradients[0], 0.0)
                if j == 1:
                    v += tl.where(positions[1] == 3 * i, gradients[1], 0.0)
                if i == 2:
                    waiting = replaced(waiting, j, v)
                else:
                    h = p * 2 - 1 + i
                    mask = (exists & (p >= begin) & (h >= 0) & (h < H) & (q * 2 + j < W))[:, None] & (c < C)[None, :]
                    deviation = centred[j]
                    if i == 0:  # to load x again takes less than to keep it
                        v += begun[j]
                        again = tl.load(x_at + row_offset(h * W + j, x_stride), mask=mask, other=0.0)
                        deviation = again.to(tl.float32) - shift[None, :]
                    dx_row = dx_at + row_offset(h * W + j, dx_stride)
                    tl.store(dx_row, (scale[None, :] * v).to(dx.dtype.element_ty), mask=mask)
                    sum_v += v
                    sum_vx += v * deviation
        sum_v, sum_vx = tl.where(p < begin, 0.0, sum_v), tl.where(p < begin, 0.0, sum_vx)
        upper, upper_places, begun = lower, lower_places, waiting
    part = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    parts, slab, exists = tl.num_programs(0) * tl.num_programs(2), tl.program_id(1), c < C
    sum_v, sum_vx = tl.sum(sum_v, 0), tl.sum(sum_vx, 0)
    finish_norm(into, arrivals, a, b, part, parts, slab, sum_v, sum_vx, var, gamma, eps, c, exists, C, count, BLOCK_C)


@planned("stem_bwd")
def stem_bwd(plan: Planner, dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
    check = Arguments(plan, "x", x)
    norm, dnorm = check.norm(norm, check.C), check.gradient_of(dnorm)
    height, width = (check.H + 1) // 2, (check.W + 1) // 2
    dy_stride = check.image("dy", dy, check.C, height, width)
    dx_stride = check.image("dx", dx, check.C)
    columns, slabs = check.N * width, cdiv(check.C, 64)
    strips, steps = cdiv(columns, 8), height + 1  # the last for the last row of pixels, if that is odd
    depth = cdiv(steps, tiles.splits(plan.device, slabs * strips, steps, 8, steps, resident=4))
    grid = strips, slabs, cdiv(steps, depth)
    # To arrive would take the fourth program's registers, and save no launch: one would clear the counters.
    into = sums_into(plan, dnorm, grid[0] * grid[2], slabs, room=False)
    plan.launch(
        stem_bwd_kernel,
        grid,
        num_warps=8,
        dy=dy,
        x=x,
        **norm._asdict(),
        dx=dx,
        **into,
        columns=columns,
        depth=depth,
        count=check.M,
        H=check.H,
        W=check.W,
        P=height,
        Q=width,
        C=check.C,
        dy_stride=dy_stride,
        x_stride=check.stride,
        dx_stride=dx_stride,
        BLOCK_M=8,
        BLOCK_C=64,
    )
    finish_bwd(plan, norm, check.M, **into)
