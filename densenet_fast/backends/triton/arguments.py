"""Checks of an operation's arguments, made before anything is allocated or written.

Each refusal is one sentence with what was got and what was expected. Nothing here looks at data or addresses: which
memory is shared, plan.py sees to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...contract import BatchNorm, Norm, NormGradient
from .plan import Planner

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

NO_NORM = BatchNorm(None, None, None, None, 0.0)  # what a kernel takes for one
Pair = tuple[Tensor, Tensor]  # rows [C] of a [2, C]: mean and variance, or a and b


class Arguments:
    """The arguments beside x [N, C, H, W], whose row stride is `stride`: x sets the dtype and N, H, W of the others."""

    def __init__(self, plan: Planner, name: str, x: Tensor):
        self.plan, self.x, self._refuse = plan, x, plan.refuse
        if x.dtype not in _DTYPES:
            self._refuse(f"dtype of {name}", x.dtype, "float32, bfloat16 or float16")
        if x.dim() != 4:
            self._refuse(f"sizes of {name}", list(x.shape), "[N, C, H, W]")
        self.N, self.C, self.H, self.W = x.shape
        self.M = self.N * self.H * self.W
        if self.M >= 1 << 30:
            self._refuse(f"sizes of {name}", list(x.shape), "fewer than 2**30 pixels")
        self.stride = self.image(name, x, self.C)

    def in_words(self, *sizes: int) -> bool:
        """Whether rows, x's and others of these `sizes`, come in 4-byte words, the least that is copied asynchronously.

        Otherwise what a stage loads goes through registers, and products in flight could meet their operands' next
        values: such layers take `Tile.unpipelined`.
        """
        words = all(size * self.x.itemsize % 4 == 0 for size in (self.C, self.stride, *sizes))
        return words and self.x.data_ptr() % 4 == 0

    def image(self, name: str, x: Tensor, channels: int, height: int | None = None, width: int | None = None) -> int:
        """The row stride of an activation [N, channels, height, width], H and W if not given."""
        self._dtype(name, x, self.x.dtype)
        h, w = self.H if height is None else height, self.W if width is None else width
        self._sizes(name, x, (self.N, channels, h, w))
        if x.numel() == 0:
            self._refuse(f"sizes of {name}", list(x.shape), "a tensor that is not empty")
        of_n, of_c, of_h, of_w = x.stride()
        row = of_w if w > 1 else of_h if h > 1 else of_n if self.N > 1 else channels
        if (
            (channels > 1 and of_c != 1)
            or row < channels
            or (h > 1 and w > 1 and of_h != w * row)
            or (self.N > 1 and h * w > 1 and of_n != h * w * row)
        ):
            self._refuse(
                f"strides of {name}",
                f"{list(x.stride())} for {list(x.shape)}",
                "NHWC memory: rows of contiguous channels at one constant stride",
            )
        return row

    def vector(self, name: str, x: Tensor, size: int) -> Tensor:
        """A vector [size] that is only read, or its copy in contiguous memory."""
        self._dtype(name, x, torch.float32)
        self._sizes(name, x, (size,))
        return self.plan.contiguous(x)

    def written(self, name: str, x: Tensor, size: int) -> Tensor:
        """Where a vector [size] is written, contiguous in memory."""
        self._dtype(name, x, torch.float32)
        self._sizes(name, x, (size,))
        if size > 1 and x.stride(0) != 1:
            self._refuse(f"strides of {name}", list(x.stride()), "[1]")
        return x

    def line(self, name: str, x: Tensor, size: int) -> None:
        """Memory [size] for activations."""
        self._dtype(name, x, self.x.dtype)
        self._sizes(name, x, (size,))
        if size > 1 and x.stride(0) != 1:
            self._refuse(f"strides of {name}", list(x.stride()), "[1]")

    def seeds(self, x: Tensor, layers: int) -> Tensor:
        """Dropout's, one for each layer."""
        self._dtype("seeds", x, torch.int64)
        self._sizes("seeds", x, (layers,))
        return self.plan.contiguous(x)

    def pair(self, name: str, x: Tensor, size: int) -> Pair:
        """The rows of a [2, size], each contiguous in memory."""
        self._dtype(name, x, torch.float32)
        self._sizes(name, x, (2, size))
        if size > 1 and x.stride(1) != 1:
            self._refuse(f"strides of {name}", list(x.stride()), "rows of contiguous memory")
        return x[0], x[1]

    def stats(self, x: Tensor | None, size: int) -> Pair | None:
        """Where statistics are written, if they are wanted."""
        return None if x is None else self.pair("stats", x, size)

    def averages(self, name: str, x: Tensor) -> Tensor:
        """One value for each image and channel [N, C], contiguous in memory or anyhow."""
        self._dtype(name, x, self.x.dtype)
        self._sizes(name, x, (self.N, self.C))
        return x

    def norm(self, norm: Norm, channels: int, suffix: str = "") -> Norm:
        """A norm, whose vectors are only read."""
        mean, var = self.vector(f"mean{suffix}", norm.mean, channels), self.vector(f"var{suffix}", norm.var, channels)
        gamma, beta = (
            None if x is None else self.vector(f"{name}{suffix}", x, channels)
            for name, x in (("gamma", norm.gamma), ("beta", norm.beta))
        )
        return Norm(mean, var, gamma, beta, norm.eps)

    def gradient_of(self, dnorm: NormGradient) -> NormGradient:
        """Where the gradient of a norm of x is written."""
        if dnorm.correction is not None:
            self.pair("correction", dnorm.correction, self.C)
        return dnorm._replace(
            dgamma=self.written("dgamma", dnorm.dgamma, self.C), dbeta=self.written("dbeta", dnorm.dbeta, self.C)
        )

    def weight(self, name: str, x: Tensor, outputs: int | None, channels: int, kernel: int) -> Tensor:
        """A convolution's weight [outputs, channels, kernel, kernel], any number of outputs if None, or its copy with
        the channels contiguous in memory ([outputs, kernel, kernel, channels])."""
        self._dtype(name, x, self.x.dtype)
        if x.dim() != 4 or x.shape[0] == 0:
            self._refuse(f"sizes of {name}", list(x.shape), f"[outputs, {channels}, {kernel}, {kernel}]")
        self._sizes(name, x, (x.shape[0] if outputs is None else outputs, channels, kernel, kernel))
        return self.plan.contiguous(x, torch.channels_last)

    def gradient(self, name: str, x: Tensor | None, weight: Tensor) -> Tensor | None:
        """Where the gradient of a weight is written, contiguous in memory."""
        if x is not None:
            self._dtype(name, x, self.x.dtype)
            self._sizes(name, x, weight.shape)
            if not x.is_contiguous():
                self._refuse(f"strides of {name}", list(x.stride()), "contiguous memory")
        return x

    def _dtype(self, name: str, x: Tensor, dtype: torch.dtype) -> None:
        if x.dtype != dtype:
            self._refuse(f"dtype of {name}", x.dtype, dtype)

    def _sizes(self, name: str, x: Tensor, expected: Sequence[int]) -> None:
        if x.shape != expected:
            self._refuse(f"sizes of {name}", list(x.shape), list(expected))
