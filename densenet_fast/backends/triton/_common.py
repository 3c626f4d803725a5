"""What the kernels share: BN-ReLU as a prologue, statistics as an epilogue, offsets beyond 2**31."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # relu(NaN) is NaN, as in PyTorch


@triton.jit
def load_norm(
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    c,  # [BLOCK] channels
    mask,  # [BLOCK] which of them exist
):
    """mean, gamma * rstd, beta of channels c, with bn(x) = (x - mean) * scale + beta; bn(0) = 0 outside the mask."""
    m = tl.load(mean + c, mask=mask, other=0.0)
    scale = tl.rsqrt(tl.load(var + c, mask=mask, other=1.0) + eps)
    if gamma is not None:
        scale *= tl.load(gamma + c, mask=mask, other=0.0)
    offset = tl.zeros_like(m)
    if beta is not None:
        offset = tl.load(beta + c, mask=mask, other=0.0)
    return m, scale, offset


@triton.jit
def row_offset(row, stride):
    """Offset of a tile's first row: 64 bits here, 32 inside the tile."""
    return tl.cast(row, tl.int64) * stride


@triton.jit
def store_stats(
    partial,  # [tiles, 2, C] mean and sum of squared deviations
    count,  # [tiles] values in each
    tile,
    z,  # [BLOCK_C, BLOCK_M] float32 if AXIS is 1, else [BLOCK_M, BLOCK_C]
    valid,  # z's shape, or broadcast to it: which values exist
    n,  # how many of each channel
    c,  # [BLOCK_C] channels
    mask,  # [BLOCK_C] which of them exist
    C,
    first,  # whether this program is the tile's first, which stores n
    AXIS: tl.constexpr,  # along which the pixels run
):
    """Statistics of one tile, in two passes over registers (docs/internals/algorithm.md, "Numerics")."""
    size = n.to(tl.float32)
    mean = tl.sum(tl.where(valid, z, 0.0), AXIS) / size
    deviation = tl.where(valid, z - tl.expand_dims(mean, AXIS), 0.0)
    at = partial + row_offset(tile, 2 * C) + c
    tl.store(at, mean, mask=mask)
    tl.store(at + C, tl.sum(deviation * deviation, AXIS), mask=mask)
    if first:
        tl.store(count + tile, size)


@triton.jit
def replaced(values, i: tl.constexpr, value):
    """The tuple with another i-th value: accumulators of one kind are kept in tuples."""
    return values[:i] + (value,) + values[i + 1 :]  # noqa: RUF005  (Triton has no unpacking)


def cdiv(a: int, b: int) -> int:
    """triton.cdiv, which kernels may call as well, takes microseconds."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def padded(channels: int, x: Tensor) -> int:
    """`channels` rounded up so that rows of x's dtype start on 16 bytes."""
    multiple = 16 // x.element_size()
    return cdiv(channels, multiple) * multiple


def block_of(size: int, least: int = 16) -> int:
    """The power of two that holds `size`, at least what a matrix instruction takes."""
    return max(least, next_power_of_2(size))
