"""BN-ReLU, the average over 2x2 pixels and a 1x1 convolution, on rows: x [M, C], y [Q, K], Q = N * (H // 2) * (W // 2).

The average runs in the prologue of the product, behind BN-ReLU; what was computed is the product's
second operand, as in bn_relu_conv1x1_fwd.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm, NormGradient
from . import tiles
from ._common import bn_relu, cdiv, load_norm, relu, row_offset
from ._partial import Partial
from ._reduce import finish_bwd, finish_norm, merge_stats, stats_into, sums_into, tile_stats
from .arguments import Arguments
from .plan import Planner, planned


@triton.jit
def top_left(q, H, W, HQ, WQ):
    """The first of the 2x2 pixels of quad q, counted over [N, HQ, WQ]."""
    return (q // (HQ * WQ) * H + q // WQ % HQ * 2) * W + q % WQ * 2


@triton.jit
def average(
    x_at,  # [BLOCK_M, BLOCK_C] addresses of the first pixel of each quad
    x_stride,
    W,
    mask,  # [BLOCK_M, BLOCK_C]
    shift,  # [BLOCK_C]
    scale,  # [BLOCK_C]
    offset,  # [BLOCK_C]
):
    """relu(bn(x)) averaged over quads, [BLOCK_M, BLOCK_C] float32."""
    total = tl.zeros(x_at.shape, dtype=tl.float32)
    for i in tl.static_range(4):
        values = tl.load(x_at + (i // 2 * W + i % 2) * x_stride, mask=mask, other=0.0)
        total += bn_relu(values, shift, scale, offset)
    return total * 0.25


@triton.jit
def transition_fwd_kernel(
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weight,  # [K, C]
    y,  # [Q, K] written
    stats,  # of y, or None (_reduce.py)
    arrivals,
    Q,
    H,
    W,
    C,
    K,
    x_stride,
    y_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_M averages and BLOCK_K outputs."""
    tile = tl.program_id(0)
    start = tile * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    n = tl.minimum(Q - start, BLOCK_M)
    first = top_left(start, H, W, H // 2, W // 2)
    pixel = top_left(start + m, H, W, H // 2, W // 2) - first
    x_at = x + row_offset(first, x_stride) + pixel[:, None] * x_stride
    acc = tl.zeros((BLOCK_K, BLOCK_M), dtype=tl.float32)
    for channel in range(0, C, BLOCK_C):
        c = channel + tl.arange(0, BLOCK_C)
        w = tl.load(weight + k[:, None] * C + c[None, :], mask=(k < K)[:, None] & (c < C)[None, :], other=0.0)
        shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
        mask = (m < n)[:, None] & (c < C)[None, :]
        averaged = average(x_at + c[None, :], x_stride, W, mask, shift, scale, offset)
        acc = tl.dot(w, tl.trans(averaged.to(w.dtype)), acc, input_precision=PRECISION)
    rounded = acc.to(y.dtype.element_ty)
    valid = (k < K)[:, None] & (m < n)[None, :]
    tl.store(y + row_offset(start, y_stride) + k[:, None] + m[None, :] * y_stride, rounded, mask=valid)
    if stats is not None:
        rows, slab, values = tl.num_programs(0), tl.program_id(1), rounded.to(tl.float32)
        tile_stats(stats, arrivals, tile, rows, slab, values, valid, n, k, k < K, K, 1, BLOCK_K)


@planned("transition_fwd")
def transition_fwd(plan: Planner, x: Tensor, norm: Norm, weight: Tensor, y: Tensor, stats: Tensor | None) -> None:
    check = Arguments(plan, "x", x)
    norm = check.norm(norm, check.C)
    weight = check.weight("weight", weight, None, check.C, 1)
    outputs, height, width = weight.shape[0], check.H // 2, check.W // 2
    y_stride, of_y = check.image("y", y, outputs, height, width), check.stats(stats, outputs)
    quads = check.N * height * width
    tile = plan.tile("transition_fwd", outputs)
    tile = tile if check.in_words() else tile.unpipelined()
    grid = cdiv(quads, tile.pixels), cdiv(outputs, tile.outputs)
    into = stats_into(plan, of_y, *grid)
    plan.launch(
        transition_fwd_kernel,
        grid,
        **tile.options,
        x=x,
        **norm._asdict(),
        weight=weight,
        y=y,
        **into,
        Q=quads,
        H=check.H,
        W=check.W,
        C=check.C,
        K=outputs,
        x_stride=check.stride,
        y_stride=y_stride,
        **tile.blocks(plan.precision),
    )
    merge_stats(plan, **into)


@triton.jit
def transition_dgrad_kernel(
    dy,  # [Q, K]
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weight,  # [K, C]
    dx,  # [M, C] written
    into,  # what takes sum(v), sum(v * (x - mean)) (_reduce.py)
    arrivals,
    a,  # [C] added to, or None
    b,  # [C] added to, or None
    N,
    H,
    W,
    C,
    K,
    dy_stride,
    x_stride,
    dx_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_M quads and BLOCK_C channels. Quads of the last odd row and column, which no average has
    seen, are counted here: their gradient is zero."""
    HQ = (H + 1) // 2
    WQ = (W + 1) // 2
    tile = tl.program_id(0)
    start = tile * BLOCK_M
    q = start + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = q // WQ % HQ
    column = q % WQ
    image = q // (HQ * WQ)
    pooled = (image < N) & (row < H // 2) & (column < W // 2)
    first_average = start // (HQ * WQ) * (H // 2) * (W // 2)
    averages = (image * (H // 2) + row) * (W // 2) + column - first_average
    dy_at = dy + row_offset(first_average, dy_stride) + averages[:, None] * dy_stride
    first = top_left(start, H, W, HQ, WQ)
    pixel = top_left(q, H, W, HQ, WQ) - first
    values = ()  # all loaded ahead of the product; dx might be x, so that none would pass a store
    for i in tl.static_range(4):
        exists = (image < N) & (row * 2 + i // 2 < H) & (column * 2 + i % 2 < W)
        at = pixel + i // 2 * W + i % 2
        x_at = x + row_offset(first, x_stride) + at[None, :] * x_stride + c[:, None]
        value = tl.load(x_at, mask=(c < C)[:, None] & exists[None, :], other=0.0)
        values += (value,)  # type: ignore[assignment]
    acc = tl.zeros((BLOCK_C, BLOCK_M), dtype=tl.float32)
    for output in range(0, K, BLOCK_K):
        k = output + tl.arange(0, BLOCK_K)
        w = tl.load(weight + k[None, :] * C + c[:, None], mask=(k < K)[None, :] & (c < C)[:, None], other=0.0)
        d = tl.load(dy_at + k[None, :], mask=pooled[:, None] & (k < K)[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        acc = tl.dot(w, tl.trans(d), acc, input_precision=PRECISION)
    acc *= 0.25
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    sum_v = tl.zeros((BLOCK_C,), dtype=tl.float32)
    sum_vx = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for i in tl.static_range(4):
        exists = (image < N) & (row * 2 + i // 2 < H) & (column * 2 + i % 2 < W)
        mask = (c < C)[:, None] & exists[None, :]
        at = pixel + i // 2 * W + i % 2
        centred = values[i].to(tl.float32) - shift[:, None]  # [BLOCK_C, BLOCK_M]
        activated = relu(centred * scale[:, None] + offset[:, None]).to(x.dtype.element_ty)
        v = tl.where(activated <= 0.0, 0.0, acc)
        sum_v += tl.sum(v, 1)
        sum_vx += tl.sum(v * centred, 1)
        dx_at = dx + row_offset(first, dx_stride) + at[None, :] * dx_stride + c[:, None]
        tl.store(dx_at, (scale[:, None] * v).to(dx.dtype.element_ty), mask=mask)
    rows, slab, count, exists = tl.num_programs(0), tl.program_id(1), N * H * W, c < C
    finish_norm(into, arrivals, a, b, tile, rows, slab, sum_v, sum_vx, var, gamma, eps, c, exists, C, count, BLOCK_C)


@triton.jit
def transition_wgrad_kernel(
    dy,  # [Q, K]
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    dweight,  # [SPLITS, K, C] written
    Q,
    H,
    W,
    C,
    K,
    dy_stride,
    x_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_C channels, BLOCK_K outputs and every SPLITS-th tile of BLOCK_M averages."""
    split = tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    dw = tl.zeros((BLOCK_K, BLOCK_C), dtype=tl.float32)
    for start in range(split * BLOCK_M, Q, tl.num_programs(2) * BLOCK_M):
        exists = m < Q - start
        first = top_left(start, H, W, H // 2, W // 2)
        pixel = top_left(start + m, H, W, H // 2, W // 2) - first
        dy_at = dy + row_offset(start, dy_stride) + m[:, None] * dy_stride + k[None, :]
        d = tl.load(dy_at, mask=exists[:, None] & (k < K)[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        x_at = x + row_offset(first, x_stride) + pixel[:, None] * x_stride + c[None, :]
        averaged = average(x_at, x_stride, W, exists[:, None] & (c < C)[None, :], shift, scale, offset)
        dw = tl.dot(tl.trans(d), averaged.to(d.dtype), dw, input_precision=PRECISION)
    dw_at = dweight + row_offset(split, K * C) + k[:, None] * C + c[None, :]
    tl.store(dw_at, dw, mask=(k < K)[:, None] & (c < C)[None, :])


@planned("transition_bwd")
def transition_bwd(
    plan: Planner,
    dy: Tensor,
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    dx: Tensor,
    dnorm: NormGradient,
    dweight: Tensor | None,
) -> None:
    check = Arguments(plan, "x", x)
    norm, dnorm = check.norm(norm, check.C), check.gradient_of(dnorm)
    dweight, weight = check.gradient("dweight", dweight, weight), check.weight("weight", weight, None, check.C, 1)
    outputs, height, width = weight.shape[0], check.H // 2, check.W // 2
    dy_stride, dx_stride = check.image("dy", dy, outputs, height, width), check.image("dx", dx, check.C)

    in_words = check.in_words(dy_stride, dx_stride)
    partial = None if dweight is None else _wgrad(check, dy, dy_stride, norm, dweight, in_words)
    tile = plan.tile("transition_dgrad", outputs)
    tile = tile if in_words else tile.unpipelined()
    rows, slabs = cdiv(check.N * cdiv(check.H, 2) * cdiv(check.W, 2), tile.pixels), cdiv(check.C, tile.channels)
    # To arrive would take registers, on sm_100 a second program's, and save no launch: one would clear the counters.
    # The one that follows instead adds up the weight's gradient, too.
    into = sums_into(plan, dnorm, rows, slabs, room=False)
    plan.launch(
        transition_dgrad_kernel,
        (rows, slabs),
        **tile.options,
        dy=dy,
        x=x,
        **norm._asdict(),
        weight=weight,
        dx=dx,
        **into,
        N=check.N,
        H=check.H,
        W=check.W,
        C=check.C,
        K=outputs,
        dy_stride=dy_stride,
        x_stride=check.stride,
        dx_stride=dx_stride,
        **tile.blocks(plan.precision),
    )
    finish_bwd(plan, norm, check.M, **into, partial=partial)


def _wgrad(check: Arguments, dy: Tensor, dy_stride: int, norm: Norm, dweight: Tensor, in_words: bool) -> Partial:
    plan, outputs, quads = check.plan, dweight.shape[0], check.N * (check.H // 2) * (check.W // 2)
    tile = plan.tile("transition_wgrad", outputs)
    tile = tile if in_words else tile.unpipelined()
    slabs = cdiv(check.C, tile.channels), cdiv(outputs, tile.outputs)
    most = tiles.partial(quads * check.x.itemsize // (2 * outputs), dweight)
    splits = tiles.splits(plan.device, slabs[0] * slabs[1], quads, tile.pixels, most, resident=2)
    weights = plan.empty(splits, outputs, check.C)
    plan.launch(
        transition_wgrad_kernel,
        (*slabs, splits),
        **tile.options,
        dy=dy,
        x=check.x,
        **norm._asdict(),
        dweight=weights,
        Q=quads,
        H=check.H,
        W=check.W,
        C=check.C,
        K=outputs,
        dy_stride=dy_stride,
        x_stride=check.stride,
        **tile.blocks(plan.precision),
    )
    return Partial(weights, dweight)
