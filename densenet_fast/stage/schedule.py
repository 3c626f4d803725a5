"""A stage's passes in terms of operations: forward over one buffer, backward over one gradient of it.

Layers add to the gradient g of the buffer and to one correction of each channel: dx = g - a - b * (x - mean), which is
applied where a channel's gradient is read. docs/internals/algorithm.md, "Deferred correction".
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import BatchNorm, Block, Half, Norm, NormGradient, Operations, accumulator
from ..contract.block import TENSORS
from . import buffer, convolution
from .halves import HalfByHalf
from .spec import ConsumerSpec, StageSpec


class Wanted(NamedTuple):
    """What is wanted of y. For the next stage: its statistics, and `room` channels behind it in memory for its layers;
    for anybody else: a dense tensor of its own in the memory format `layout`. buffer: the buffer is wanted, too."""

    stats: bool = False
    room: int = 0
    layout: torch.memory_format | None = None
    buffer: bool = False


class Stage(NamedTuple):
    """A stage about to run."""

    spec: StageSpec
    ops: Operations
    dtype: torch.dtype  # of the activations
    wanted: Wanted
    extend: bool  # x is the head of a buffer that has room for the layers
    efficient: bool  # recompute z, or a stem's convolution, in backward instead of keeping it
    dtypes: list[torch.dtype]  # of the tensors

    def block(self, slots: list[Tensor | None], seeds: Tensor | None) -> Block:
        return Block(self.spec.channels, self.of_block(slots), self.spec.numbers, seeds)

    def of_block(self, slots: list[Tensor | None]) -> list[Tensor | None]:
        return slots[: len(TENSORS) * len(self.spec.layers)]


class Passed(NamedTuple):
    """What a forward leaves."""

    y: Tensor
    y_stats: Tensor | None  # [2, K], if they were wanted
    x: Tensor  # the buffer [N, C_total, H, W]
    stats: Tensor  # [2, S], zero where no norm takes them from the batch
    z: Tensor | None  # [Z], if it is kept
    reported: Tensor  # `stats`; in a synchronised stage with unbiased variances where they are of a group


def forward(
    stage: Stage, x: Tensor, x_stats: Tensor | None, tensors: Sequence[Tensor], seeds: Tensor | None, keep_z: bool
) -> Passed:
    """x [N, C0, H, W] with its statistics [2, C0], if its producer has them; or the images that a stem convolves."""
    spec, ops = stage.spec, stage.ops
    slots = spec.full(tensors)
    if spec.convolution is not None:
        x = convolution.convolved(spec, convolution.laid_out(x, stage.dtype), slots)
    pixels = x.numel() // x.shape[1]
    x = buffer.started(x, spec.total, stage.extend)
    stats = x.new_zeros((2, spec.statistics), dtype=accumulator(x.dtype))
    z = x.new_empty((spec.z_size(pixels),)) if keep_z and spec.layers else None
    if spec.tracked:
        of_head = stats[:, : spec.channels]
        if x_stats is None:
            ops.channel_stats(x[:, : spec.channels], of_head)
        else:
            of_head.copy_(x_stats)
    block, reported = stage.block(slots, seeds), stats
    if spec.by_halves:
        reported = HalfByHalf(spec, ops, x, block).forward(stats, z)
    elif spec.layers:
        ops.block_fwd(x, stats, z, block, spec.tracked, 0, len(spec.layers), Half.BOTH)
    if spec.consumer is None:
        return Passed(x, None, x, stats, z, reported)
    norm, weight = _of_consumer(spec, slots, stats)
    y, y_stats = _output(spec.consumer, x, stats, stage.wanted)
    if spec.consumer.kind == "transition":
        ops.transition_fwd(x, norm, weight, y, y_stats)
    elif spec.consumer.kind == "stem":
        ops.stem_fwd(x, norm, y, y_stats)
    else:
        ops.head_fwd(x, norm, y)
    return Passed(y, y_stats, x, stats, z, reported)


def _of_consumer(spec: StageSpec, slots: list[Tensor | None], stats: Tensor) -> tuple[Norm, Tensor]:
    """The consumer's norm, on the statistics that it normalises by, and its weight, if it has one."""
    mean, var, gamma, beta, weight = slots[spec.consumer_slots]
    assert spec.consumer is not None
    return BatchNorm(mean, var, gamma, beta, spec.consumer.eps).on(stats[:, spec.of_consumer]), weight


def _output(consumer: ConsumerSpec, x: Tensor, stats: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor | None]:
    """Uninitialised, in NHWC memory: y is dense for others; for the next stage, it is the head of that one's buffer."""
    n, _, *size = x.shape
    if consumer.kind == "head":
        # Not new_empty: MONAI's MetaTensor has one of its own, which takes a tuple alone and forgets what x knows.
        return x.new_empty_strided((n, consumer.outputs), (consumer.outputs, 1)), None
    rounds_up = consumer.kind == "stem"
    if consumer.pools:
        size = [(s + rounds_up) // 2 for s in size]
    shape = (n, consumer.outputs + wanted.room, *size)
    y = buffer.allocate(shape, like=x) if wanted.layout is None else buffer.dense(shape, like=x)
    y = y[:, : consumer.outputs] if wanted.room else y
    return y, stats.new_empty((2, consumer.outputs)) if wanted.stats else None


def _allocated(
    spec: StageSpec, tensors: Sequence[Tensor], needs: Sequence[bool], like: Callable[..., Tensor]
) -> list[Any]:
    """Dense gradients of the tensors that need one, but for those of a convolution. like: torch.empty_like, or
    torch.zeros_like of an empty batch, of which nothing is written."""
    found: list[Any]
    if spec.convolution is None and all(needs):
        found = list(map(like, tensors))
    else:
        found = [like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
        for i in spec.of_convolution:
            found[i] = None
    for i in spec.weights:  # a vector's is dense
        if found[i] is not None and not found[i].is_contiguous():
            found[i] = like(tensors[i], memory_format=torch.contiguous_format)  # which takes longer
    return found


def backward(
    stage: Stage,
    x: Tensor | None,
    images: Tensor | None,
    stats: Tensor,
    z: Tensor | None,
    tensors: Sequence[Tensor],
    seeds: Tensor | None,
    dy: Tensor | None,
    needs_x: bool,
    needs: Sequence[bool],
    dbuffer: Tensor | None = None,
) -> tuple[Tensor | None, list[Any]]:
    """The gradients of the stage's input [N, C0, H, W], if it needs one, and of the `tensors` that do.

    x: the buffer [N, C_total, H, W], or None where a convolution makes it again; images: what that is given, which
    need no gradient, or None where its tensors need none and x is there. dy: the gradient of the consumer's output, or
    of the buffer if there is no consumer; dbuffer: beside it, that of the buffer, which others may have read. One of
    these two may be None.
    """
    spec, ops = stage.spec, stage.ops
    slots = spec.full(tensors)
    if images is not None:
        images = convolution.laid_out(images, stage.dtype)
    if x is None:
        assert images is not None
        x = buffer.started(convolution.convolved(spec, images, slots), spec.total, extend=False)
    if dy is None:  # nothing comes from the consumer
        needs = spec.of_layers(needs)
    g = buffer.allocate(x.shape, like=x)
    correction = torch.zeros_like(stats)
    gradients = _allocated(spec, tensors, needs, torch.empty_like if x.numel() else torch.zeros_like)
    of_slots = spec.full(gradients)
    if dy is None or spec.consumer is None:
        given = dbuffer if dy is None else dy
        assert given is not None
        g.copy_(given)
    else:
        of_buffer = correction[:, spec.of_consumer] if spec.consumer.batch else None
        _, _, dgamma, dbeta, dweight = of_slots[spec.consumer_slots]
        dnorm = NormGradient(
            stats.new_empty((spec.total,)) if dgamma is None else dgamma,
            stats.new_empty((spec.total,)) if dbeta is None else dbeta,
            of_buffer,
        )
        norm, weight = _of_consumer(spec, slots, stats)
        if spec.consumer.kind == "head":
            ops.head_bwd(dy, x, norm, g, dnorm)
        else:
            dy = dy.contiguous(memory_format=torch.channels_last) if dy.dim() == 4 else buffer.laid_out(dy)
            if spec.consumer.kind == "transition":
                ops.transition_bwd(dy, x, norm, weight, g, dnorm, dweight)
            else:
                ops.stem_bwd(dy, x, norm, g, dnorm)
        if dbuffer is not None:
            g.add_(dbuffer)

    count = len(spec.layers)
    layers = (slot // len(TENSORS) for slot, need in zip(spec.slots, needs, strict=True) if need)
    lowest = 0 if needs_x else next(layers, count)
    needs_convolution = [needs[i] for i in spec.of_convolution]
    needs_x = needs_x or any(needs_convolution)
    block, of_x = stage.block(slots, seeds), slice(spec.channels)
    of_block = stage.of_block(of_slots)
    if spec.by_halves:
        walk = HalfByHalf(spec, ops, x, block)
        stats = stats.clone()
        walk.backward(g, correction, stats, z, of_block, lowest)
        if needs_x:
            correction = walk.correction(correction, stats, of_x, spec.groups[0])
    elif lowest < count:
        ops.block_bwd(g, correction, x, stats, z, block, of_block, None, lowest, count, Half.BOTH)
    if not needs_x:
        return None, gradients
    dx = buffer.dense((x.shape[0], spec.channels, *x.shape[2:]), like=x) if images is None else g
    ops.bn_bwd_apply(g[:, of_x], x[:, of_x], stats[0, of_x], correction[:, of_x], dx)
    if images is None:
        return dx, gradients
    del x  # if it was made again
    found = convolution.gradients(spec, dx, images, slots, needs_convolution)
    return None, [*gradients[: -len(found)], *found]
