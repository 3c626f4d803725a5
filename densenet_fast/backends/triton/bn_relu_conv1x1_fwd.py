"""BN-ReLU and the 1x1 convolution forward, on rows: x [M, C], z [M, K], M = N*H*W, at any row stride.

BN-ReLU runs in the prologue of the product and never reaches memory. Products are written transposed, weight times
pixels: what was computed is then the second operand, which Triton keeps in shared memory (docs/internals/triton.md).
"""

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm
from . import tiles
from ._common import bn_relu, cdiv, load_norm, relu, row_offset
from ._reduce import finish_stats, merge_stats, stats_into
from .arguments import NO_NORM, Arguments, Pair


@triton.jit
def bn_relu_conv1x1_fwd_kernel(
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weight,  # [K, C]
    z_mean,  # [K] or None: the norm behind the convolution, applied with its ReLU to what is stored
    z_var,  # [K] or None
    z_gamma,  # [K] or None
    z_beta,  # [K] or None
    z_eps,
    z,  # [M, K] written
    stats,  # of z, or None (_reduce.py)
    arrivals,
    M,
    C,
    K,
    x_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_M pixels and BLOCK_K outputs."""
    tile = tl.program_id(0)
    start = tile * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    n = tl.minimum(M - start, BLOCK_M)
    # The last pixel and output in place of those behind them, which takes less than to mask: they are not stored.
    x_at = x + row_offset(start, x_stride) + tl.minimum(m, n - 1)[:, None] * x_stride
    row = tl.minimum(k, K - 1)[:, None] * C
    acc = tl.zeros((BLOCK_K, BLOCK_M), dtype=tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        exists = c < C
        values = tl.load(x_at + c[None, :], mask=exists[None, :], other=0.0)  # [BLOCK_M, BLOCK_C]
        w = tl.load(weight + (row + c[None, :]), mask=exists[None, :], other=0.0)
        shift, scale, b = load_norm(mean, var, gamma, beta, eps, c, exists)
        activated = bn_relu(values, shift, scale, b).to(w.dtype)
        acc = tl.dot(w, tl.trans(activated), acc, input_precision=PRECISION)
    if z_mean is not None:
        shift, scale, b = load_norm(z_mean, z_var, z_gamma, z_beta, z_eps, k, k < K)
        acc = relu((acc - shift[:, None]) * scale[:, None] + b[:, None])
    rounded = acc.to(z.dtype.element_ty)
    valid = (k < K)[:, None] & (m < n)[None, :]
    tl.store(z + row_offset(start, K) + k[:, None] + m[None, :] * K, rounded, mask=valid)
    if stats is not None:
        # As in `tile_stats`, but the copies of the last pixel are multiplied by 0: that takes less than to select.
        size, one = n.to(tl.float32), (m < n).to(tl.float32)[None, :]
        values = rounded.to(tl.float32) * one
        mean = tl.sum(values, 1) / size
        deviation = values - mean[:, None] * one
        squares = tl.sum(deviation * deviation, 1)
        rows, slab = tl.num_programs(0), tl.program_id(1)
        finish_stats(stats, arrivals, tile, rows, slab, mean, squares, size, k, k < K, K, BLOCK_K)


def conv1x1(check: Arguments, norm: Norm, weight: Tensor, z_norm: Norm | None, z: Tensor, z_stats: Pair | None) -> None:
    """z [M, K] dense, through `z_norm` and ReLU if one is given, and its statistics if they are wanted."""
    plan, outputs = check.plan, weight.shape[0]
    tile = plan.tile("bn_relu_conv1x1_fwd", outputs)
    if not check.in_words():
        tile = tile.unpipelined()
    elif tiles.family(plan.device) == 90 and plan.kind == tiles.HALF and tile.outputs == 128:  # which leaves room
        tile = tile.spread(plan.device, check.M, outputs)
    grid = cdiv(check.M, tile.pixels), cdiv(outputs, tile.outputs)
    stats = stats_into(plan, z_stats, *grid)
    of_z = z_norm or NO_NORM
    plan.launch(
        bn_relu_conv1x1_fwd_kernel,
        grid,
        **tile.options,
        x=check.x,
        **norm._asdict(),
        weight=weight,
        z_mean=of_z.mean,
        z_var=of_z.var,
        z_gamma=of_z.gamma,
        z_beta=of_z.beta,
        z_eps=of_z.eps,
        z=z,
        **stats,
        M=check.M,
        C=check.C,
        K=outputs,
        x_stride=check.stride,
        **tile.blocks(plan.precision),
    )
    merge_stats(plan, **stats)
