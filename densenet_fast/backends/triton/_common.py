"""What the kernels share: BN-ReLU as a prologue, offsets beyond 2**31."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # relu(NaN) is NaN, as in PyTorch


@triton.jit
def bn_relu(
    x,  # [BLOCK_M, BLOCK_C] as loaded
    shift,  # [BLOCK_C] of `load_norm`, as the next two
    scale,  # [BLOCK_C]
    offset,  # [BLOCK_C]
):
    """relu(bn(x)) in float32."""
    if x.dtype == tl.float32:
        normed = (x - shift[None, :]) * scale[None, :] + offset[None, :]
    else:  # one instruction less for each value; x was rounded more coarsely than this rounds
        normed = x.to(tl.float32) * scale[None, :] + (offset - shift * scale)[None, :]
    return relu(normed)


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
def replaced(values, i: tl.constexpr, value):
    """The tuple with another i-th value: accumulators of one kind are kept in tuples."""
    return values[:i] + (value,) + values[i + 1 :]  # noqa: RUF005  (Triton has no unpacking)


@triton.jit
def clear_kernel(
    counters,  # [n] written
    n,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(counters + i, 0, mask=i < n)


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
