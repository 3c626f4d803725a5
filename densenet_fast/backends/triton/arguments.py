"""Checks of an operation's arguments, made before anything is allocated or written.

Each refusal is one sentence with what was got and what was expected. Nothing here looks at data.
"""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

Norm = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # mean, var, gamma, beta [C]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Image(NamedTuple):
    name: str
    address: int
    rows: int
    channels: int
    stride: int
    written: bool

    def shares_memory_with(self, other: "_Image", itemsize: int) -> bool:
        """Slices of one buffer may lie beside each other: each in the gaps between the other's rows."""
        distance = (other.address - self.address) // itemsize
        before = (self.rows - 1) * self.stride + self.channels <= distance
        behind = (other.rows - 1) * other.stride + other.channels <= -distance
        beside = self.stride == other.stride and self.channels <= distance % self.stride <= self.stride - other.channels
        return not (before or behind or beside)


class Arguments:
    """The arguments of `operation`; x [N, C, H, W], with row stride `stride`, sets the dtype, the
    device and N, H, W of the others."""

    def __init__(self, operation: str, name: str, x: Tensor):
        self._operation = operation
        if x.dtype not in _DTYPES:
            self.refuse(f"dtype of {name}", x.dtype, "float32, bfloat16 or float16")
        self._dtype, self._device, self._itemsize = x.dtype, x.device, x.element_size()
        self._images: list[_Image] = []
        if x.dim() != 4:
            self.refuse(f"sizes of {name}", list(x.shape), "[N, C, H, W]")
        self.N, self.C, self.H, self.W = x.shape
        self.M = self.N * self.H * self.W
        if self.M >= 1 << 30:
            self.refuse(f"sizes of {name}", list(x.shape), "fewer than 2**30 pixels")
        self.stride = self.image(name, x, self.C)

    def in_words(self, *sizes: int) -> bool:
        """Whether rows, x's and others of these `sizes`, come in 4-byte words, the least that is copied asynchronously.

        Otherwise what a stage loads goes through registers, and products in flight could meet their operands' next
        values: such layers take `Tile.unpipelined`.
        """
        words = all(size * self._itemsize % 4 == 0 for size in (self.C, self.stride, *sizes))
        return words and self._images[0].address % 4 == 0

    def image(
        self,
        name: str,
        x: Tensor,
        channels: int,
        height: int | None = None,
        width: int | None = None,
        written: bool = False,
    ) -> int:
        """The row stride of an activation [N, channels, height, width], H and W if not given.

        What is written shares no memory with any other.
        """
        self._dtype_and_device(name, x, self._dtype)
        h, w = self.H if height is None else height, self.W if width is None else width
        self._sizes(name, x, (self.N, channels, h, w))
        if x.numel() == 0:
            self.refuse(f"sizes of {name}", list(x.shape), "a tensor that is not empty")
        of_n, of_c, of_h, of_w = x.stride()
        row = of_w if w > 1 else of_h if h > 1 else of_n if self.N > 1 else channels
        if (
            (channels > 1 and of_c != 1)
            or row < channels
            or (h > 1 and w > 1 and of_h != w * row)
            or (self.N > 1 and h * w > 1 and of_n != h * w * row)
        ):
            self.refuse(
                f"strides of {name}",
                f"{list(x.stride())} for {list(x.shape)}",
                "NHWC memory: rows of contiguous channels at one constant stride",
            )
        image = _Image(name, x.data_ptr(), x.numel() // channels, channels, row, written)
        for other in () if x.is_meta else self._images:  # meta tensors have no memory
            if (written or other.written) and image.shares_memory_with(other, self._itemsize):
                first, second = (image, other) if written else (other, image)
                self.refuse(f"memory of {first.name}", f"memory that {second.name} shares", "memory of its own")
        self._images.append(image)
        return row

    def vector(self, name: str, x: Tensor, size: int, written: bool = False) -> Tensor:
        """A float32 vector [size], contiguous in memory; one that is only read is copied if it is not."""
        self._dtype_and_device(name, x, torch.float32)
        self._sizes(name, x, (size,))
        if size > 1 and x.stride(0) != 1:
            if written:
                self.refuse(f"strides of {name}", list(x.stride()), "[1]")
            return x.contiguous()
        return x

    def averages(self, name: str, x: Tensor) -> Tensor:
        """One value for each image and channel [N, C], contiguous in memory; copied if they are not."""
        self._dtype_and_device(name, x, self._dtype)
        self._sizes(name, x, (self.N, self.C))
        return x.contiguous()

    def stats(self, mean: Tensor | None, var: Tensor | None, channels: int) -> tuple[Tensor, Tensor] | None:
        """Where a mean and a variance [channels] are written, None if they are not wanted."""
        if mean is None or var is None:
            return None
        return self.vector("y_mean", mean, channels, written=True), self.vector("y_var", var, channels, written=True)

    def norm(
        self,
        mean: Tensor,
        var: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        channels: int,
        prefix: str = "",
        suffix: str = "",
    ) -> Norm:
        return (
            self.vector(f"{prefix}mean{suffix}", mean, channels),
            self.vector(f"{prefix}var{suffix}", var, channels),
            None if gamma is None else self.vector(f"{prefix}gamma{suffix}", gamma, channels),
            None if beta is None else self.vector(f"{prefix}beta{suffix}", beta, channels),
        )

    def weight(self, name: str, x: Tensor, outputs: int | None, channels: int, kernel: int) -> Tensor:
        """A convolution's weight [outputs, channels, kernel, kernel], any number of outputs if None, with the channels
        contiguous in memory ([outputs, kernel, kernel, channels]); copied if they are not."""
        self._dtype_and_device(name, x, self._dtype)
        if x.dim() != 4 or x.shape[0] == 0:
            self.refuse(f"sizes of {name}", list(x.shape), f"[outputs, {channels}, {kernel}, {kernel}]")
        self._sizes(name, x, (x.shape[0] if outputs is None else outputs, channels, kernel, kernel))
        return x.contiguous(memory_format=torch.channels_last)

    def gradient(self, name: str, x: Tensor, like: Tensor) -> Tensor:
        """Where the gradient of a weight is written, contiguous in memory; empty if it is not wanted."""
        self._dtype_and_device(name, x, self._dtype)
        if x.shape != (0,):
            self._sizes(name, x, like.shape)
        if not x.is_contiguous():
            self.refuse(f"strides of {name}", list(x.stride()), "contiguous memory")
        return x

    def seed(self, x: Tensor | None) -> Tensor | None:
        """Dropout's seed, an int64 scalar."""
        if x is not None:
            self._dtype_and_device("seed", x, torch.int64)
            self._sizes("seed", x, ())
        return x

    def refuse(self, what: str, got: object, expected: object) -> NoReturn:
        raise RuntimeError(f"densenet_fast::{self._operation}: wrong {what}: got {got}, expected {expected}")

    def _dtype_and_device(self, name: str, x: Tensor, dtype: torch.dtype) -> None:
        if x.dtype != dtype:
            self.refuse(f"dtype of {name}", x.dtype, dtype)
        if x.device != self._device:
            self.refuse(f"device of {name}", x.device, self._device)

    def _sizes(self, name: str, x: Tensor, expected: Sequence[int]) -> None:
        if x.shape != expected:
            self.refuse(f"sizes of {name}", list(x.shape), list(expected))
