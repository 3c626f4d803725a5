"""A dense block as the block operations take it: its layers in flat lists, their results in memory that they share.

tensors     ten for each layer, `TENSORS`: norm1's mean and var (None for the batch's), gamma, beta; weight1; the
            same of norm2 and weight2, all None in a layer without bottleneck
numbers     three for each layer, `NUMBERS`: norm1's eps, norm2's eps, the probability of dropout
gradients   as `tensors`: where the gradient of each is written, or None
stats       [2, S]: mean and biased variance of the buffer's channels, then of each bottleneck's in turn
correction  [2, S]: a and b of the same channels
z           [Z]: one bottleneck [N, K, H, W] behind the other, each in dense NHWC memory from a multiple of `ALIGNED`
            elements on
"""

from collections.abc import Iterator, Sequence
from enum import IntFlag
from typing import NamedTuple

from torch import Tensor

from .records import BatchNorm

TENSORS = ("mean1", "var1", "gamma1", "beta1", "weight1", "mean2", "var2", "gamma2", "beta2", "weight2")
NUMBERS = ("eps1", "eps2", "drop_rate")
ALIGNED = 64


class Half(IntFlag):
    """The halves of a layer, between which statistics may be reduced or another convolution step in.

    norm1 relu1 conv1 make the bottleneck z, norm2 relu2 conv2 and dropout the new channels. A layer without bottleneck
    has the second half alone: its norm1 relu1 conv1 and dropout.
    """

    FIRST = 1
    SECOND = 2
    BOTH = 3


class Block(NamedTuple):
    channels: int  # of the block's input
    tensors: list[Tensor | None]
    numbers: list[float]
    seeds: Tensor | None  # dropout's, int64 [layers]; None where no layer drops

    def layers(self, total: int, pixels: int) -> Iterator["Layer"]:
        """Each layer in turn. total: channels of the buffer; pixels: N * H * W."""
        begin, statistics, z = self.channels, total, 0
        for i in range(len(self.numbers) // len(NUMBERS)):
            of_layer = self.tensors[len(TENSORS) * i : len(TENSORS) * (i + 1)]
            mean1, var1, gamma1, beta1, weight1, mean2, var2, gamma2, beta2, weight2 = of_layer
            eps1, eps2, drop_rate = self.numbers[len(NUMBERS) * i : len(NUMBERS) * (i + 1)]
            assert weight1 is not None
            end = begin + (weight1 if weight2 is None else weight2).shape[0]
            width = 0 if weight2 is None else weight1.shape[0]
            yield Layer(
                i,
                begin,
                end,
                width,
                BatchNorm(mean1, var1, gamma1, beta1, eps1),
                weight1,
                BatchNorm(mean2, var2, gamma2, beta2, eps2),
                weight2,
                drop_rate,
                None if self.seeds is None or drop_rate == 0 else self.seeds[i],
                slice(statistics, statistics + width),
                slice(z, z + pixels * width),
            )
            begin, statistics, z = end, statistics + width, z + aligned(pixels * width)


class Layer(NamedTuple):
    """One layer of a block: its tensors, and its places in the memory of the block."""

    number: int  # among the layers, from 0 on
    begin: int  # it reads the channels before `begin`
    end: int  # and writes those from there to `end`
    width: int  # K; 0 without bottleneck
    norm1: BatchNorm
    weight1: Tensor
    norm2: BatchNorm
    weight2: Tensor | None
    drop_rate: float
    seed: Tensor | None  # None: dropout does not run
    of_z: slice  # the bottleneck's part of stats and correction
    z: slice  # the bottleneck's part of z


def aligned(elements: int) -> int:
    return -(-elements // ALIGNED) * ALIGNED


def z_size(widths: Sequence[int], pixels: int) -> int:
    """Elements of a block's z."""
    return sum(aligned(pixels * width) for width in widths)
