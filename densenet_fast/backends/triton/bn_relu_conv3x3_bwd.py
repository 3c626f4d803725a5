"""BN-ReLU, the 3x3 convolution and dropout backward. Layouts as in bn_relu_conv3x3_fwd.py.

`correct` writes the gradient d of the convolution's output once, where it can over the gradient that it corrects; the
weight and input gradients then read it nine times as it is, straight into the matrix products.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm, NormGradient
from . import tiles
from ._common import block_of, bn_relu, cdiv, load_norm, padded, replaced, row_offset
from ._partial import Partial, rows_of_programs, sum_weight
from ._reduce import finish_bwd, finish_norm, sums_into
from .arguments import Arguments, Pair
from .dropout import Dropout, dropout_scale


@triton.jit
def bn_relu_conv3x3_correct_kernel(
    dy,  # [M, G]
    y,  # [M, G]
    y_mean,  # [G]
    y_a,  # [G]
    y_b,  # [G]
    seed,  # int64 scalar, or None without dropout
    d,  # [M, D] written, zeros behind G; may be dy
    weights,  # [splits, weight_stride] partial gradients of another layer's 1x1 weight, or None (_reduce.py)
    dweight,  # [weight_stride] written, or None
    splits,
    weight_stride,
    M,
    G,
    dy_stride,
    y_stride,
    d_stride,
    threshold,
    keep,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """d = dropout's scale * (dy - y_a - y_b * (y - y_mean)). The first programs add up the other weight's."""
    adding = 0
    if weights is not None:
        adding = rows_of_programs(weight_stride)
    if tl.program_id(0) < adding:
        if weights is not None:
            sum_weight(weights, dweight, splits, weight_stride, 1, 1, 1)
    else:
        start = (tl.program_id(0) - adding) * BLOCK_M
        m = tl.arange(0, BLOCK_M)
        g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
        rows = m < M - start
        mask = rows[:, None] & (g < G)[None, :]
        dy_at = dy + row_offset(start, dy_stride) + m[:, None] * dy_stride + g[None, :]
        y_at = y + row_offset(start, y_stride) + m[:, None] * y_stride + g[None, :]
        centred = tl.load(y_at, mask=mask, other=0.0).to(tl.float32) - tl.load(y_mean + g, mask=g < G)[None, :]
        value = tl.load(dy_at, mask=mask, other=0.0).to(tl.float32) - tl.load(y_a + g, mask=g < G)[None, :]
        value -= tl.load(y_b + g, mask=g < G)[None, :] * centred
        if seed is not None:
            element = row_offset(start + m, G)[:, None] + g[None, :]
            value *= dropout_scale(seed, element, threshold, keep)
        value = tl.where(mask, value, 0.0).to(d.dtype.element_ty)
        d_at = d + row_offset(start, d_stride) + m[:, None] * d_stride + g[None, :]
        tl.store(d_at, value, mask=rows[:, None] & (g < D)[None, :])


@triton.jit
def bn_relu_conv3x3_dgrad_kernel(
    d,  # [M, D]
    weight,  # [G, 3, 3, C]
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    u,  # [M, C] written; if ACCUMULATE, dx, added to
    into,  # what takes sum(u), sum(u * (x - mean)) (_reduce.py)
    arrivals,
    a,  # [C] added to, or None
    b,  # [C] added to, or None
    weights,  # [splits, weight_stride] partial gradients of the weight, or None (_reduce.py)
    dweight,  # [G, C, 9] written, or None
    splits,
    weight_stride,
    M,
    H,
    W,
    C,
    G,
    d_stride,
    x_stride,
    u_stride,
    D: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """u^T [C, M] = weight^T [C, 9 * D] @ shifted d^T [9 * D, M]: taps and gradient channels are one reduced axis.
    The first programs add up the weight's gradient."""
    adding = 0
    if weights is not None:
        adding = rows_of_programs(weight_stride)
    if tl.program_id(0) < adding:
        if weights is not None:
            sum_weight(weights, dweight, splits, weight_stride, G, C, 9)
    else:
        tile = tl.program_id(0) - adding
        start = tile * BLOCK_M
        m = tl.arange(0, BLOCK_M)
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        w = (start + m) % W
        h = (start + m) // W % H
        # A bit for each tap whose neighbour is in the image: those of a row of taps are three next to each other.
        inside = tl.where(m < M - start, 0x1FF, 0) & tl.where(h < H - 1, 0x1FF, 0x1F8) & tl.where(h > 0, 0x1FF, 0x03F)
        inside &= tl.where(w < W - 1, 0x1FF, 0x1B6) & tl.where(w > 0, 0x1FF, 0x0DB)
        d_at = d + row_offset(start, d_stride) + m[:, None] * d_stride
        acc = tl.zeros((BLOCK_C, BLOCK_M), dtype=tl.float32)
        for first in range(0, 9 * D, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            tap = k // D
            g = k % D
            dh = 1 - tap // 3
            dw = 1 - tap % 3
            d_mask = (inside[:, None] >> tap[None, :]) & 1 != 0
            offset = (dh * W + dw) * d_stride + g
            shifted = tl.load(d_at + offset[None, :], mask=d_mask, other=0.0)  # [BLOCK_M, BLOCK_K]
            w_mask = (c < C)[:, None] & ((tap < 9) & (g < G))[None, :]
            w_at = weight + ((g * 9 + tap) * C)[None, :] + c[:, None]
            taps = tl.load(w_at, mask=w_mask, other=0.0)  # [BLOCK_C, BLOCK_K]
            acc = tl.dot(taps, tl.trans(shifted), acc, input_precision=PRECISION)
        # As it will be stored. Rounded behind the mask alone, ptxas lets each product wait for the one before.
        acc = acc.to(u.dtype.element_ty).to(tl.float32)
        mask = (c < C)[:, None] & (m < M - start)[None, :]
        shift, scale, bias = load_norm(mean, var, gamma, beta, eps, c, c < C)
        rows = tl.minimum(m, M - start - 1)[None, :]  # the last pixel in place of those behind it, where acc is 0
        x_at = x + row_offset(start, x_stride) + rows * x_stride + c[:, None]
        centred = tl.load(x_at, mask=(c < C)[:, None], other=0.0).to(tl.float32) - shift[:, None]
        # NaN > 0 is false, and so is NaN <= 0: ReLU passes NaN's gradient, as in PyTorch.
        v = tl.where(centred * scale[:, None] + bias[:, None] <= 0.0, 0.0, acc)
        sum_vx, sum_v = tl.sum(v * centred, 1), tl.sum(v, 1)  # in this order: the other one spills
        u_at = u + row_offset(start, u_stride) + rows * u_stride + c[:, None]
        if ACCUMULATE:
            before = tl.load(u_at, mask=mask, other=0.0).to(tl.float32)
            tl.store(u_at, (before + scale[:, None] * v).to(u.dtype.element_ty), mask=mask)
        else:
            tl.store(u_at, v.to(u.dtype.element_ty), mask=mask)
        programs, slab = tl.num_programs(0) - adding, tl.program_id(1)
        finish_norm(into, arrivals, a, b, tile, programs, slab, sum_v, sum_vx, var, gamma, eps, c, c < C, C, M, BLOCK_C)


@triton.jit
def bn_relu_conv3x3_wgrad_kernel(
    d,  # [M, D]
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weights,  # [splits, 9, G, C] partial gradients of the weight, written
    tiles,  # cdiv(M, BLOCK_M)
    M,
    H,
    W,
    C,
    G,
    d_stride,
    x_stride,
    D: tl.constexpr,
    TAPS: tl.constexpr,
    WAITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """TAPS of the weight's taps for one slab of channels and one split of the pixels, all in registers."""
    split = tl.program_id(0)
    m = tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(2) % (9 // TAPS) * TAPS
    g = tl.program_id(2) // (9 // TAPS) * BLOCK_G + tl.arange(0, BLOCK_G)
    shift, scale, b = load_norm(mean, var, gamma, beta, eps, c, c < C)
    acc = (tl.zeros((BLOCK_C, BLOCK_G), dtype=tl.float32),) * TAPS
    for tile in range(split, tiles, tl.num_programs(0)):
        start = tile * BLOCK_M
        exists = m < M - start
        w = (start + m) % W
        h = (start + m) // W % H
        mask = exists[:, None] & (c < C)[None, :]
        x_at = x + row_offset(start, x_stride) + m[:, None] * x_stride + c[None, :]
        values = tl.load(x_at, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_C]
        # Of pixels that do not exist it is not 0, but the gradient is.
        activated = tl.trans(bn_relu(values, shift, scale, b).to(values.dtype))
        d_at = d + row_offset(start, d_stride) + m[:, None] * d_stride + g[None, :]
        for i in tl.static_range(TAPS):
            dh = 1 - (first + i) // 3
            dw = 1 - (first + i) % 3
            inside = exists & (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
            shifted = tl.load(d_at + (dh * W + dw) * d_stride, mask=inside[:, None] & (g < D)[None, :], other=0.0)
            made = tl.dot(activated, shifted, acc[i], input_precision=PRECISION)
            if WAITS:
                # Never true, and gone from the machine code; but Triton now waits for each product, where ptxas,
                # finding one in flight into the next round, would let every instruction of them wait for the one
                # before. In tensor memory it would be moved to registers and back.
                made = tl.where(made > float("inf"), 0.0, made)
            acc = replaced(acc, i, made)
    at = weights + row_offset(split * 9 + first, G * C) + g[None, :] * C + c[:, None]
    for i in tl.static_range(TAPS):
        tl.store(at + i * G * C, acc[i], mask=(c < C)[:, None] & (g < G)[None, :])


class Output(NamedTuple):
    """What the convolution and dropout made, with all that its gradient takes to be corrected."""

    dy: Tensor  # [N, G, H, W], as is y
    y: Tensor
    mean: Tensor  # [G]
    correction: Pair  # [G] each


def conv3x3_bwd(
    check: Arguments,
    output: Output,
    norm: Norm,
    weight: Tensor,
    dropout: Dropout,
    u: Tensor,
    accumulate: bool,
    dnorm: NormGradient,
    dweight: Tensor | None,
    another: Partial | None,
) -> None:
    """Writes u or, to `accumulate`, adds to it; and adds up `another` weight's gradient, which was kept for it."""
    u_stride = check.image("g" if accumulate else "u", u, check.C)
    d = _correct(check, output, dropout, another)
    check.plan.keep(None)
    partial = None if dweight is None else _wgrad(check, d, norm, dweight)
    _dgrad(check, d, weight, norm, u, u_stride, accumulate, dnorm, partial)


def _correct(check: Arguments, output: Output, dropout: Dropout, another: Partial | None) -> Tensor:
    """d [M, D], the gradient of the convolution's output; D is G rounded up to rows of 16-byte pieces. It lies over dy,
    which nobody reads again, where that has such rows, no image's row being too long for offsets of 32 bits; else in
    scratch memory."""
    dy, y, y_mean, (y_a, y_b) = output
    growth = y.shape[1]
    dy_stride, y_stride = check.image("g", dy, growth), check.image("x", y, growth)
    fits = padded(growth, dy) == growth and padded(dy_stride, dy) == dy_stride and dy.data_ptr() % 16 == 0
    if fits and check.W * dy_stride < 1 << 30:
        d = dy.as_strided((check.M, growth), (dy_stride, 1))
    else:
        d = check.plan.empty(check.M, padded(growth, dy), dtype=dy.dtype)
    block = min(64, block_of(d.shape[1]))
    slabs = cdiv(d.shape[1], block)
    check.plan.launch(
        bn_relu_conv3x3_correct_kernel,
        (cdiv(check.M, 4096 // block) + Partial.programs(another, slabs), slabs),
        num_warps=8,
        dy=dy,
        y=y,
        y_mean=y_mean,
        y_a=y_a,
        y_b=y_b,
        seed=dropout.seed,
        d=d,
        **Partial.arguments(another),
        M=check.M,
        G=growth,
        dy_stride=dy_stride,
        y_stride=y_stride,
        d_stride=d.stride(0),
        threshold=dropout.threshold,
        keep=dropout.keep,
        D=d.shape[1],
        BLOCK_M=4096 // block,
        BLOCK_G=block,
    )
    return d


def _dgrad(
    check: Arguments,
    d: Tensor,
    weight: Tensor,
    norm: Norm,
    u: Tensor,
    u_stride: int,
    accumulate: bool,
    dnorm: NormGradient,
    partial: Partial | None,
) -> None:
    """u is written, or added to."""
    plan = check.plan
    tile = plan.tile("bn_relu_conv3x3_dgrad", check.C)
    tile = tile if check.in_words() else tile.unpipelined()
    rows, slabs = cdiv(check.M, tile.pixels), cdiv(check.C, tile.channels)
    # To add to memory leaves no registers for more, nor does sm_80: a launch behind merges, and adds up the weight's.
    into = sums_into(plan, dnorm, rows, slabs, room=not accumulate and tiles.family(plan.device) != 80)
    here, behind = (None, partial) if into["arrivals"] is None else (partial, None)
    plan.launch(
        bn_relu_conv3x3_dgrad_kernel,
        (rows + Partial.programs(here, slabs), slabs),
        **tile.options,
        d=d,
        weight=weight,
        x=check.x,
        **norm._asdict(),
        u=u,
        **into,
        **Partial.arguments(here),
        M=check.M,
        H=check.H,
        W=check.W,
        C=check.C,
        G=weight.shape[0],
        d_stride=d.stride(0),
        x_stride=check.stride,
        u_stride=u_stride,
        D=d.shape[1],
        ACCUMULATE=accumulate,
        BLOCK_M=tile.pixels,
        BLOCK_C=tile.channels,
        BLOCK_K=tile.outputs,
        PRECISION=plan.precision,
    )
    finish_bwd(plan, norm, check.M, **into, partial=behind)


def _wgrad(check: Arguments, d: Tensor, norm: Norm, dweight: Tensor) -> Partial:
    plan, growth = check.plan, dweight.shape[0]
    tile = plan.tile("bn_relu_conv3x3_wgrad", growth)
    tile = tile if check.in_words() else tile.unpipelined()
    few = plan.kind == tiles.FP32 or plan.device.architecture < 90
    taps = 3 if few else 9  # as many accumulators as fit in registers
    slabs, groups = cdiv(check.C, tile.channels), cdiv(growth, tile.outputs) * (9 // taps)
    most = tiles.partial(cdiv(check.M, 512), dweight)
    weights = plan.empty(tiles.splits(plan.device, slabs * groups, check.M, tile.pixels, most), 9, growth, check.C)
    plan.launch(
        bn_relu_conv3x3_wgrad_kernel,
        (weights.shape[0], slabs, groups),
        **tile.options,
        d=d,
        x=check.x,
        **norm._asdict(),
        weights=weights,
        tiles=cdiv(check.M, tile.pixels),
        M=check.M,
        H=check.H,
        W=check.W,
        C=check.C,
        G=growth,
        d_stride=d.stride(0),
        x_stride=check.stride,
        D=d.shape[1],
        TAPS=taps,
        WAITS=tiles.family(plan.device) == 90,
        BLOCK_M=tile.pixels,
        BLOCK_C=tile.channels,
        BLOCK_G=tile.outputs,
        PRECISION=plan.precision,
    )
    return Partial(weights, dweight)
