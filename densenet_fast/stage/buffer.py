"""Memory of activations: a stage's concatenation buffer, and how tensors lie that come in and are handed out.

A buffer is [N, C_total, H, W] in NHWC memory. A layer that has C channels before it reads `x[:, :C]` and owns the slice
behind it. docs/internals/algorithm.md, "One buffer per block".
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def row_stride(channels: int, dtype: torch.dtype) -> int:
    """Elements from one pixel to the next: `channels`, rounded up so that rows start on 16 bytes."""
    multiple = max(1, 16 // dtype.itemsize)
    return -(-channels // multiple) * multiple


def allocate(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of `shape` [N, C, H, W] in NHWC memory, its rows on 16-byte boundaries."""
    n, channels, h, w = shape
    stride = row_stride(channels, like.dtype)
    whole = dense((n, stride, h, w), like)
    return whole if stride == channels else whole[:, :channels]


def dense(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of `shape` [N, C, H, W] in NHWC memory without gaps."""
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def extended(head: Tensor, channels: int) -> Tensor:
    """The tensor of `channels` channels, made by `allocate`, that begins with `head` [N, C0, H, W]."""
    n, _, h, w = head.shape
    row = row_stride(channels, head.dtype)
    strides = (h * w * row, 1, w * row, row)
    end = (head.storage_offset() + n * h * w * row) * head.itemsize
    if head.stride() != strides or head.untyped_storage().nbytes() < end:
        raise ValueError(
            f"no room behind x: got strides {head.stride()}, expected {strides}, the head of a buffer of {channels} "
            "channels, as a stage with `output_room` returns it"
        )
    return head.as_strided((n, channels, h, w), strides)


def started(x0: Tensor, channels: int, extend: bool) -> Tensor:
    """A buffer of `channels` channels that begins with x0 [N, C0, H, W].

    Where x0 already is the whole buffer, or its head (`extend`), it is used as it is, not copied.
    """
    n, c0, h, w = x0.shape
    if extend:
        return extended(x0, channels)
    if c0 == channels and is_nhwc(x0):
        return x0
    x = allocate((n, channels, h, w), like=x0)
    x[:, :c0].copy_(x0)
    return x


def is_nhwc(x: Tensor) -> bool:
    """Whether the pixels of [N, C, H, W] are rows of contiguous channels at one constant stride."""
    n, c, h, w = x.shape
    row = x.stride(3) if w > 1 else x.stride(2) if h > 1 else x.stride(0) if n > 1 else c
    return (
        (c == 1 or x.stride(1) == 1)
        and row >= c
        and (w == 1 or h == 1 or x.stride(2) == w * row)
        and (n == 1 or h * w == 1 or x.stride(0) == h * w * row)
    )


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format that PyTorch's layers give their outputs for an input or a weight with the strides of x
    [N, C, H, W]: channels_last where, from one dimension to the next, C, W, H, N are ever further apart."""
    if x.dim() != 4:
        return torch.contiguous_format  # to be refused
    span = 0
    for dim in (1, 3, 2, 0):
        size, stride = x.shape[dim], x.stride(dim)
        ambiguous = (dim == 1 and stride == 0) or (dim == 0 and span == x.stride(1))
        if size == 0 or stride < span or ambiguous:
            return torch.contiguous_format
        span = stride * size
    return torch.channels_last


def convolved_format(layout: torch.memory_format, weight: Tensor) -> torch.memory_format:
    """The memory format that PyTorch gives the convolution of an input in `layout`."""
    return layout if layout == torch.channels_last else memory_format(weight)


def laid_out(x: Tensor) -> Tensor:
    """x [N, C, H, W] in NHWC memory, where a hook on saved tensors may have given it another."""
    return x if is_nhwc(x) else allocate(x.shape, like=x).copy_(x)


def handed_out(y: Tensor, layout: torch.memory_format, shared: bool) -> Tensor:
    """y [N, C, H, W] in NHWC memory as others may have and change it: dense in `layout`, not `shared` with anybody."""
    _, c, h, w = y.shape
    nhwc = layout == torch.channels_last
    strides = (c * h * w, 1, w * c, c) if nhwc else (c * h * w, h * w, w, 1)
    return y.clone(memory_format=layout) if shared or y.stride() != strides else y
