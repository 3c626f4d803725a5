"""Memory of activations: a stage's concatenation buffer, and how tensors lie that come in and are handed out.

A buffer is [N, C_total, H, W] in NHWC memory. A layer that has C channels before it reads `x[:, :C]` and owns the slice
behind it. docs/internals/algorithm.md, "One buffer per block". Images of one dimension, [N, C, L], and of three,
[N, C, D, H, W], lie alike: NHWC stands for channels innermost.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor


def row_stride(channels: int, dtype: torch.dtype) -> int:
    """Elements from one pixel to the next: `channels`, rounded up so that rows start on 16 bytes."""
    multiple = max(1, 16 // dtype.itemsize)
    return -(-channels // multiple) * multiple


def allocate(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of `shape` [N, C, H, W] in NHWC memory, its rows on 16-byte boundaries."""
    stride = row_stride(shape[1], like.dtype)
    whole = dense((shape[0], stride, *shape[2:]), like)
    return whole if stride == shape[1] else whole[:, : shape[1]]


def dense(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of `shape` [N, C, H, W] in NHWC memory without gaps."""
    return like.new_empty_strided(tuple(shape), nhwc_strides(shape, shape[1]))


def nhwc_strides(shape: Sequence[int], row: int) -> tuple[int, ...]:
    """Of [N, C, H, W] in NHWC memory, `row` elements from one pixel to the next."""
    if len(shape) == 4:
        _, _, h, w = shape
        return h * w * row, 1, w * row, row
    strides = list(accumulate(shape[:1:-1], mul, initial=row))
    return strides[-1], 1, *strides[-2::-1]


def extended(head: Tensor, channels: int) -> Tensor:
    """The tensor of `channels` channels, made by `allocate`, that begins with `head` [N, C0, H, W]."""
    row = row_stride(channels, head.dtype)
    strides = nhwc_strides(head.shape, row)
    end = (head.storage_offset() + head.shape[0] * strides[0]) * head.itemsize
    if head.stride() != strides or head.untyped_storage().nbytes() < end:
        raise ValueError(
            f"no room behind x: got strides {head.stride()}, expected {strides}, the head of a buffer of {channels} "
            "channels, as a stage with `output_room` returns it"
        )
    return head.as_strided((head.shape[0], channels, *head.shape[2:]), strides)


def started(x0: Tensor, channels: int, extend: bool) -> Tensor:
    """A buffer of `channels` channels that begins with x0 [N, C0, H, W].

    Where x0 already is the whole buffer, or its head (`extend`), it is used as it is, not copied.
    """
    n, c0, *size = x0.shape
    if extend:
        return extended(x0, channels)
    if c0 == channels and is_nhwc(x0):
        return x0
    x = allocate((n, channels, *size), like=x0)
    x[:, :c0].copy_(x0)
    return x


def is_nhwc(x: Tensor) -> bool:
    """Whether the pixels of [N, C, H, W] are rows of contiguous channels at one constant stride."""
    strides = x.stride()
    if len(strides) == 4:
        n, c, h, w = x.shape
        of_n, of_c, of_h, of_w = strides
        row = of_w if w > 1 else of_h if h > 1 else of_n if n > 1 else c
        return (
            (c == 1 or of_c == 1)
            and row >= c
            and (w == 1 or h == 1 or of_h == w * row)
            and (n == 1 or h * w == 1 or of_n == h * w * row)
        )
    c = x.shape[1]
    outwards = [dim for dim in (*range(x.dim() - 1, 1, -1), 0) if x.shape[dim] != 1]
    row = strides[outwards[0]] if outwards else c
    step = row
    for dim in outwards:
        if strides[dim] != step:
            return False
        step *= x.shape[dim]
    return (c == 1 or strides[1] == 1) and row >= c


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format that PyTorch's layers give their outputs for an input or a weight with the strides of x
    [N, C, H, W]: channels_last where, from one dimension to the next, C, W, H, N are ever further apart."""
    shape, strides = x.shape, x.stride()
    if len(shape) not in (4, 5):
        return torch.contiguous_format
    span = 0
    for dim in (1, 3, 2, 0) if len(shape) == 4 else (1, 4, 3, 2, 0):
        size, stride = shape[dim], strides[dim]
        ambiguous = (dim == 1 and stride == 0) or (dim == 0 and span == strides[1])
        if size == 0 or stride < span or ambiguous:
            return torch.contiguous_format
        span = stride * size
    return channels_last(x)


def channels_last(x: Tensor) -> torch.memory_format:
    """PyTorch's name for NHWC; for images of one dimension it has none."""
    return torch.channels_last_3d if x.dim() == 5 else torch.channels_last if x.dim() == 4 else torch.contiguous_format


def convolved_format(layout: torch.memory_format, weight: Tensor) -> torch.memory_format:
    """The memory format that PyTorch gives the convolution of an input in `layout`."""
    return memory_format(weight) if layout == torch.contiguous_format else layout


def laid_out(x: Tensor) -> Tensor:
    """x [N, C, H, W] in NHWC memory, where a hook on saved tensors may have given it another."""
    return x if is_nhwc(x) else allocate(x.shape, like=x).copy_(x)


def handed_out(y: Tensor, layout: torch.memory_format, shared: bool) -> Tensor:
    """y [N, C, H, W] in NHWC memory as others may have and change it: dense in `layout`, not `shared` with anybody."""
    if layout != torch.contiguous_format:
        strides = nhwc_strides(y.shape, y.shape[1])
    elif y.dim() == 4:
        _, c, h, w = y.shape
        strides = c * h * w, h * w, w, 1
    else:
        strides = tuple([*accumulate(y.shape[:0:-1], mul, initial=1)][::-1])
    return y.clone(memory_format=layout) if shared or y.stride() != strides else y


def lay_out_as(weights: Sequence[Tensor], gradients: list[Tensor | None], places: Sequence[int]) -> None:
    """The contiguous `gradients` in these places in the memory format of their weights: PyTorch's fused optimizers read
    both as they lie."""
    for i in places:
        gradient = gradients[i]
        if gradient is not None and not weights[i].is_contiguous():
            gradients[i] = gradient.contiguous(memory_format=memory_format(weights[i]))
