"""Bytes of one stage of a training step."""

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Literal

import torch

from ..contract import accumulator
from ..contract.block import z_size
from ..stage.buffer import row_stride


@dataclass(frozen=True)
class Stage:
    """A stage of a step: a dense block with what consumes its buffer, or the stem, the first convolution's output
    without layers."""

    name: str  # the block's in the model; of a stem, that of the block behind it, which decides for both
    images: int  # N
    size: tuple[int, ...]  # H, W
    channels: int  # C0
    layers: tuple[tuple[int, int], ...]  # of each its bottleneck's width K, 0 without one, and its growth G
    consumer: Literal["transition", "stem", "head"]
    outputs: int  # channels of y
    parameters: int  # those with a gradient, in bytes
    converted: int  # weights that autocast converts, in bytes as converted
    dtype: torch.dtype  # of the activations
    pools: bool = True  # whether the transition halves the image
    by_halves: bool = False  # whether its layers run half by half
    trained: bool = True  # whether it has a backward: something in it or before it has a gradient
    layers_learn: bool = True  # whether its backward goes through its layers
    given: int = 0  # bytes of the statistics that norms in evaluation are given, of which a copy is kept
    weights: int = 0  # of the first convolution, which a stem begins with

    @property
    def can_recompute(self) -> bool:
        """Whether there is anything that `efficient` recomputes."""
        return self.again > 0

    @property
    def again(self) -> int:
        """Bytes that `efficient` recomputes instead of keeping: bottleneck outputs; of a stem, its convolution's."""
        if self.consumer != "stem":
            return self.z
        return self.buffer if self.trained and self.name else 0

    @property
    def pixels(self) -> int:
        """N * H * W."""
        return self.images * prod(self.size)

    @property
    def total(self) -> int:
        """Channels of the buffer."""
        return self.channels + sum(growth for _, growth in self.layers)

    @property
    def widths(self) -> list[int]:
        """Of the bottlenecks."""
        return [width for width, _ in self.layers if width]

    @property
    def inputs(self) -> list[int]:
        """Channels that each layer reads."""
        return list(accumulate((growth for _, growth in self.layers), initial=self.channels))[:-1]

    @property
    def buffer(self) -> int:
        """Bytes of the concatenation buffer, and of the gradient of it."""
        channels = row_stride(self.total, self.dtype) if self.layers else self.total
        return self.pixels * channels * self.dtype.itemsize

    @property
    def z(self) -> int:
        """Bytes of all bottleneck outputs."""
        if not self.layers_learn:
            return 0
        return z_size(self.widths, self.pixels) * self.dtype.itemsize

    @property
    def recomputed(self) -> int:
        """Multiply-adds by which `efficient` makes them once more."""
        if not self.can_recompute:
            return 0
        if self.consumer == "stem":
            return self.pixels * self.weights
        return sum(self.pixels * c * width for c, (width, _) in zip(self.inputs, self.layers, strict=True))

    @property
    def statistics(self) -> int:
        """Bytes of means and variances. Where layers run by halves they have room for one more bottleneck."""
        spare = max(self.widths, default=0) if self.by_halves else 0
        return 2 * (self.total + sum(self.widths) + spare) * accumulator(self.dtype).itemsize

    @property
    def output_size(self) -> tuple[int, ...]:
        if self.consumer == "head":
            return (1,) * len(self.size)
        if not self.pools:
            return self.size
        return tuple((s + (self.consumer == "stem")) // 2 for s in self.size)

    @property
    def output(self) -> int:
        """Bytes of y, and of its gradient."""
        return self.images * prod(self.output_size) * self.outputs * self.dtype.itemsize

    def kept(self, efficient: bool) -> int:
        """Bytes that the forward leaves for the backward."""
        if not self.trained:
            return 0
        buffer = 0 if self.consumer == "stem" and self.can_recompute else self.buffer
        return buffer + self.statistics + self.given + self.converted + (0 if efficient else self.again)
