"""BN-ReLU, the 3x3 convolution and dropout forward; the backward is in bn_relu_conv3x3_bwd.py.

Activations are rows [M, C], M = N*H*W, at any row stride; weights are [G, 3, 3, C] in memory; tap = 3 * kh + kw.

An implicit GEMM whose tiles are STRIP neighbouring pixels of a row, so that a loaded and activated column serves up to
three outputs.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm
from . import tiles
from ._common import block_of, bn_relu, cdiv, load_norm, relu, replaced, row_offset
from ._reduce import finish_stats, merge_stats, stats_into
from .arguments import NO_NORM, Arguments, Pair
from .dropout import Dropout, dropout_scale


@triton.jit
def bn_relu_conv3x3_fwd_kernel(
    x,  # [M, C]
    mean,  # [C], or None to take x as it is
    var,  # [C], or None
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weight,  # [G, 3, 3, C]
    seed,  # int64 scalar, or None without dropout
    y,  # [M, G] written
    stats,  # of y, or None (_reduce.py)
    arrivals,
    strips,  # N * H * per_row
    per_row,  # strips in a row, cdiv(W, STRIP)
    H,
    W,
    C,
    G,
    x_stride,
    y_stride,
    threshold,
    keep,
    STRIP: tl.constexpr,
    WHOLE: tl.constexpr,  # whether W is a multiple of STRIP
    TIED: tl.constexpr,  # whether an accumulator decides the layout in which a column is loaded
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    s = tile * BLOCK_S + tl.arange(0, BLOCK_S)
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    row = s // per_row  # n * H + h
    h = row % H
    w = s % per_row * STRIP  # of the strip's first pixel
    start = tile * BLOCK_S // per_row * W  # first pixel of the tile's first row
    pixel = row * W + w - start
    x_at = x + row_offset(start, x_stride)
    acc = (tl.zeros((BLOCK_S, BLOCK_G), dtype=tl.float32),) * STRIP
    chunks = tl.cdiv(C, BLOCK_C)
    for i in range(3 * chunks):
        kh = i // chunks
        c = i % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
        if mean is not None:
            shift, scale, b = load_norm(mean, var, gamma, beta, eps, c, c < C)
        w_at = weight + (g[None, :] * 9 + kh * 3) * C + c[:, None]
        w_mask = (c < C)[:, None] & (g < G)[None, :]
        taps = (
            tl.load(w_at, mask=w_mask, other=0.0),  # [BLOCK_C, BLOCK_G]
            tl.load(w_at + C, mask=w_mask, other=0.0),
            tl.load(w_at + 2 * C, mask=w_mask, other=0.0),
        )
        inside = (s < strips) & (h + kh >= 1) & (h + kh <= H)
        for column in tl.static_range(STRIP + 2):  # the pixel at w + column - 1
            within = inside
            if column == 0:
                within = within & (w >= 1)
            if not WHOLE or column == STRIP + 1:
                within = within & (w + column <= W)
            mask = within[:, None] & (c < C)[None, :]
            offset = (pixel + (kh - 1) * W + column - 1) * x_stride
            activated = tl.load(x_at + offset[:, None] + c[None, :], mask=mask, other=0.0)  # [BLOCK_S, BLOCK_C]
            if mean is not None:
                if TIED:
                    # Never true, and gone from the machine code; but Triton now loads the column in the layout of the
                    # product, whose operand it is as it lies. Elsewhere its warps exchange it in shared memory.
                    activated = tl.where(acc[min(column, STRIP - 1)] > float("inf"), 0.0, activated)
                activated = _bn_relu_padded(activated, within, shift, scale, b).to(activated.dtype)
            for j in tl.static_range(max(column - 2, 0), min(column + 1, STRIP)):
                acc = replaced(acc, j, tl.dot(activated, taps[column - j], acc[j], input_precision=PRECISION))
    tile_at = (tile, s < strips, w, start, pixel)
    _store_strips(acc, seed, y, stats, arrivals, tile_at, g, W, G, y_stride, threshold, keep, STRIP, BLOCK_G)


@triton.jit
def _bn_relu_padded(
    x,  # [BLOCK_S, BLOCK_C] as loaded, 0 in the padding
    within,  # [BLOCK_S] which pixels are not
    shift,  # [BLOCK_C]
    scale,  # [BLOCK_C]
    b,  # [BLOCK_C]
):
    """As `bn_relu`, but 0 in the padding, which follows the ReLU."""
    exists = within.to(tl.float32)[:, None]
    if x.dtype == tl.float32:
        activated = bn_relu(x, shift, scale, b) * exists
    else:  # columns that exist alike share what is added: less to work out than to select by
        activated = relu(x.to(tl.float32) * scale[None, :] + (b - shift * scale)[None, :] * exists)
    return activated


@triton.jit
def _store_strips(
    acc,  # STRIP of [BLOCK_S, BLOCK_G]
    seed,
    y,
    stats,
    arrivals,
    tile_at,  # the tile; which of its strips exist, [BLOCK_S]; their w; start; their first pixels, from start
    g,  # [BLOCK_G]
    W,
    G,
    y_stride,
    threshold,
    keep,
    STRIP: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Dropout, y and its statistics."""
    tile, exists, w, start, pixel = tile_at
    total = tl.zeros_like(g).to(tl.float32)
    for j in tl.static_range(STRIP):
        mask = (exists & (w + j < W))[:, None] & (g < G)[None, :]
        z = tl.where(mask, acc[j], 0.0)
        if seed is not None:
            element = row_offset(start + pixel + j, G)[:, None] + g[None, :]
            z *= dropout_scale(seed, element, threshold, keep)
        rounded = z.to(y.dtype.element_ty)
        y_at = y + row_offset(start, y_stride) + (pixel + j)[:, None] * y_stride + g[None, :]
        tl.store(y_at, rounded, mask=mask)
        acc = replaced(acc, j, rounded.to(tl.float32))
        total += tl.sum(acc[j], 0)
    if stats is not None:
        n = tl.sum(tl.where(exists, tl.minimum(W - w, STRIP), 0), 0).to(tl.float32)
        center = total / n
        squares = tl.zeros_like(center)
        for j in tl.static_range(STRIP):
            mask = (exists & (w + j < W))[:, None] & (g < G)[None, :]
            deviation = tl.where(mask, acc[j] - center[None, :], 0.0)
            squares += tl.sum(deviation * deviation, 0)
        rows, slab = tl.num_programs(0), tl.program_id(1)
        finish_stats(stats, arrivals, tile, rows, slab, center, squares, n, g, g < G, G, BLOCK_G)


# What a program with strips of so many pixels takes of a multiprocessor that has several of them, in proportion:
# modelled for sm_90. A longer strip loads fewer columns for a pixel, but has fewer programs. On ties the longest.
TIMES = {7: 42, 4: 25, 2: 17, 1: 13}
BESIDE = 3  # programs on a multiprocessor, of which fewer take hardly less time


def conv3x3(
    check: Arguments, norm: Norm | None, weight: Tensor, dropout: Dropout, y: Tensor, y_stats: Pair | None
) -> None:
    """y, and its statistics if they are wanted; without `norm` x is convolved as it is."""
    plan, growth = check.plan, weight.shape[0]
    y_stride, in_words = check.image("x", y, growth), check.in_words()
    tile = plan.tile("bn_relu_conv3x3_fwd", growth)
    if not in_words:
        tile = tile._replace(channels=32, num_stages=1)
    on_90, narrow, processors = tiles.family(plan.device) == 90, tile.outputs <= 32, plan.device.processors
    # As many accumulators as fit in registers, or in tensor memory.
    strip = 1 if plan.kind == tiles.FP32 or not in_words else 4 if narrow or on_90 else 2

    def programs(strip: int) -> int:
        return cdiv(check.N * check.H * cdiv(check.W, strip), tile.pixels)

    tied = on_90 and narrow and in_words and norm is not None and plan.kind == tiles.HALF
    if tied:
        strip = min(TIMES, key=lambda s: TIMES[s] * max(BESIDE, cdiv(programs(s), processors)))
        if strip == 1 and programs(strip) <= processors:  # with one on each, its shared memory is free for a longer way
            tile = tile._replace(channels=min(128, block_of(check.C)))
            tied = tile.channels == tile.outputs
    elif narrow and programs(strip) * strip < processors:
        strip = 1  # so few programs that there is a multiprocessor for each pixel's
    whole, per_row = check.W % strip == 0, cdiv(check.W, strip)
    strips = check.N * check.H * per_row
    grid = cdiv(strips, tile.pixels), cdiv(growth, tile.outputs)
    stats = stats_into(plan, y_stats, *grid)
    plan.launch(
        bn_relu_conv3x3_fwd_kernel,
        grid,
        **tile.options,
        # Three programs on a multiprocessor, not two: by itself ptxas takes 180 registers.
        maxnreg=168 if tied and strip == 4 and whole and dropout.seed is None else None,
        x=check.x,
        **(norm or NO_NORM)._asdict(),
        weight=weight,
        seed=dropout.seed,
        y=y,
        **stats,
        strips=strips,
        per_row=per_row,
        H=check.H,
        W=check.W,
        C=check.C,
        G=growth,
        x_stride=check.stride,
        y_stride=y_stride,
        threshold=dropout.threshold,
        keep=dropout.keep,
        STRIP=strip,
        WHOLE=whole,
        TIED=tied,
        BLOCK_S=tile.pixels,
        BLOCK_G=tile.outputs,
        BLOCK_C=tile.channels,
        PRECISION=plan.precision,
    )
    merge_stats(plan, **stats)
