"""The steps of a stage: plain tuples of tensors with a forward over a `Buffer` and a backward over a `Gradient`.

A stage is any number of layers (`Bottleneck`, `Plain`) and then at most one consumer of the buffer (`Transition`,
`Head`, `Stem`). A step's backward returns a tuple of its own type that holds gradients where it held tensors; those
that nobody needs are unspecified.
"""

from collections.abc import Iterable
from functools import cache
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .buffer import Buffer, Gradient, allocate, dense


class Norm(NamedTuple):
    """A BatchNorm. `mean, var` [C]: the running statistics to use, or None for those of the batch.
    `gamma, beta` [C]: weight and bias, or None. All in the accumulator dtype."""

    mean: Tensor | None
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    @property
    def uses_batch(self) -> bool:
        return self.mean is None

    def on(self, mean: Tensor | None, var: Tensor | None) -> "Norm":
        """This norm with the statistics it normalises by: its own, or else the given ones of the batch."""
        return self._replace(mean=mean, var=var) if self.uses_batch else self

    def gradient(self, dgamma: Tensor, dbeta: Tensor) -> "Norm":
        return Norm(None, None, dgamma, dbeta, self.eps)


def flatten(steps: Iterable[tuple[Any, ...]]) -> list[Any]:
    """All fields of the steps in order, those of a Norm in its place."""
    leaves: list[Any] = []
    for step in steps:
        for field in step:
            leaves += field if isinstance(field, Norm) else (field,)
    return leaves


def unflatten(types: Iterable[type], leaves: Iterable[Any]) -> list[Any]:
    """Steps of the given types that hold `leaves`: the inverse of `flatten`."""
    values = iter(leaves)
    size = len(Norm._fields)
    return [
        kind(*[Norm(*islice(values, size)) if is_norm else next(values) for is_norm in _are_norms(kind)])
        for kind in types
    ]


@cache
def _are_norms(kind: type) -> tuple[bool, ...]:
    """Of each field of a step, whether it is a Norm."""
    return tuple(name.startswith("norm") for name in kind._fields)  # type: ignore[attr-defined]


class Kept(NamedTuple):
    """What a layer keeps for backward: z, or None to recompute it, and z's statistics [K]."""

    z: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None


class Bottleneck(NamedTuple):
    """BN-ReLU-conv1x1-BN-ReLU-conv3x3-dropout. weight1 [K, C, 1, 1], weight2 [G, K, 3, 3], seed int64 scalar."""

    norm1: Norm
    weight1: Tensor
    norm2: Norm
    weight2: Tensor
    drop_rate: float = 0.0
    seed: Tensor | None = None

    @property
    def growth(self) -> int:
        return self.weight2.shape[0]

    @property
    def norms(self) -> tuple[Norm, ...]:
        return self.norm1, self.norm2

    def infer(self, ops: SimpleNamespace, buffer: Buffer, c: int) -> None:
        """The layer without anything kept, on running statistics and without dropout."""
        ops.bottleneck_infer(
            buffer.before(c),
            *self.norm1,
            self.weight1,
            *self.norm2,
            self.weight2,
            buffer.slot(c, c + self.growth)[0],
        )

    def forward(self, ops: SimpleNamespace, buffer: Buffer, c: int, keep_z: bool) -> Kept:
        norm1 = self.norm1.on(buffer.mean[:c], buffer.var[:c])
        stats = self.norm2.uses_batch
        z, mean, var = ops.bn_relu_conv1x1_fwd(buffer.before(c), *norm1, self.weight1, stats)
        slot = buffer.slot(c, c + self.growth)
        ops.bn_relu_conv3x3_fwd(z, *self.norm2.on(mean, var), self.weight2, self.drop_rate, self.seed, *slot)
        return Kept(z if keep_z else None, mean if stats else None, var if stats else None)

    def backward(
        self,
        ops: SimpleNamespace,
        buffer: Buffer,
        gradient: Gradient,
        c: int,
        kept: Kept,
        needs: Any,
    ) -> "Bottleneck":
        x = buffer.before(c)
        norm1 = self.norm1.on(buffer.mean[:c], buffer.var[:c])
        norm2 = self.norm2.on(kept.mean, kept.var)
        z = kept.z
        if z is None:
            z = ops.bn_relu_conv1x1_fwd(x, *norm1, self.weight1, False)[0]
        correction = gradient.a.new_zeros((2, z.shape[1])).unbind()

        u, *dnorm2, dweight2 = ops.bn_relu_conv3x3_bwd(
            *gradient.of(c, c + self.growth),
            z,
            *norm2,
            self.weight2,
            self.drop_rate,
            self.seed,
            self.norm2.uses_batch,
            None,
            *correction,
            needs.weight2,
        )
        *dnorm1, dweight1 = ops.bn_relu_conv1x1_bwd(
            u,
            z,
            norm2.mean,
            norm2.var,
            norm2.gamma,
            norm2.eps,
            *correction,
            x,
            *norm1,
            self.weight1,
            self.norm1.uses_batch,
            *gradient.into(c),
            needs.weight1,
        )
        return Bottleneck(self.norm1.gradient(*dnorm1), dweight1, self.norm2.gradient(*dnorm2), dweight2)


class Plain(NamedTuple):
    """BN-ReLU-conv3x3-dropout, the layer of DenseNet without bottleneck. weight1 [G, C, 3, 3]."""

    norm1: Norm
    weight1: Tensor
    drop_rate: float = 0.0
    seed: Tensor | None = None

    @property
    def growth(self) -> int:
        return self.weight1.shape[0]

    @property
    def norms(self) -> tuple[Norm, ...]:
        return (self.norm1,)

    def infer(self, ops: SimpleNamespace, buffer: Buffer, c: int) -> None:
        self.forward(ops, buffer, c, keep_z=False)

    def forward(self, ops: SimpleNamespace, buffer: Buffer, c: int, keep_z: bool) -> Kept:
        norm1 = self.norm1.on(buffer.mean[:c], buffer.var[:c])
        slot = buffer.slot(c, c + self.growth)
        ops.bn_relu_conv3x3_fwd(buffer.before(c), *norm1, self.weight1, self.drop_rate, self.seed, *slot)
        return Kept()

    def backward(
        self,
        ops: SimpleNamespace,
        buffer: Buffer,
        gradient: Gradient,
        c: int,
        kept: Kept,
        needs: Any,
    ) -> "Plain":
        norm1 = self.norm1.on(buffer.mean[:c], buffer.var[:c])
        _, *dnorm1, dweight1 = ops.bn_relu_conv3x3_bwd(
            *gradient.of(c, c + self.growth),
            buffer.before(c),
            *norm1,
            self.weight1,
            self.drop_rate,
            self.seed,
            self.norm1.uses_batch,
            *gradient.into(c),
            needs.weight1,
        )
        return Plain(self.norm1.gradient(*dnorm1), dweight1)


class Wanted(NamedTuple):
    """What is wanted of y. For the next stage: its statistics, and `room` channels behind it in memory for its layers;
    for anybody else: a dense tensor of its own in the memory format `layout`."""

    stats: bool = False
    room: int = 0
    layout: torch.memory_format | None = None


class Output(NamedTuple):
    """What a consumer makes of the buffer: y and, if they were wanted, y's statistics."""

    y: Tensor
    mean: Tensor | None = None
    var: Tensor | None = None

    @classmethod
    def new(cls, buffer: Buffer, channels: int, height: int, width: int, wanted: "Wanted") -> "Output":
        """Uninitialised, in NHWC memory: y [N, channels, height, width] is dense for others; for the next stage, it is
        the head of that one's buffer."""
        shape = (buffer.x.shape[0], channels + wanted.room, height, width)
        y = allocate(shape, like=buffer.x) if wanted.layout is None else dense(shape, like=buffer.x)
        y = y[:, :channels] if wanted.room else y
        return cls(y, *buffer.mean.new_empty((2, channels)).unbind()) if wanted.stats else cls(y)


class Transition(NamedTuple):
    """BN-ReLU, 2x2 average, conv1x1. weight [K, C_total, 1, 1]."""

    norm: Norm
    weight: Tensor

    def forward(self, ops: SimpleNamespace, buffer: Buffer, wanted: Wanted) -> Output:
        _, _, h, w = buffer.x.shape
        output = Output.new(buffer, self.weight.shape[0], h // 2, w // 2, wanted)
        ops.transition_fwd(buffer.x, *self.norm.on(buffer.mean, buffer.var), self.weight, *output)
        return output

    def backward(self, ops: SimpleNamespace, gradient: Gradient, dy: Tensor, needs: Any) -> "Transition":
        buffer = gradient.buffer
        norm = self.norm.on(buffer.mean, buffer.var)
        *dnorm, dweight = ops.transition_bwd(
            dy, buffer.x, *norm, self.weight, self.norm.uses_batch, *gradient.into(), needs.weight
        )
        return Transition(self.norm.gradient(*dnorm), dweight)


class Head(NamedTuple):
    """The final BN-ReLU and the average over the image."""

    norm: Norm

    def forward(self, ops: SimpleNamespace, buffer: Buffer, wanted: Wanted) -> Output:
        return Output(ops.head_fwd(buffer.x, *self.norm.on(buffer.mean, buffer.var)))

    def backward(self, ops: SimpleNamespace, gradient: Gradient, dy: Tensor, needs: Any) -> "Head":
        buffer = gradient.buffer
        norm = self.norm.on(buffer.mean, buffer.var)
        dnorm = ops.head_bwd(dy, buffer.x, *norm, self.norm.uses_batch, *gradient.into())
        return Head(self.norm.gradient(*dnorm))


class Stem(NamedTuple):
    """BN-ReLU-maxpool behind the first convolution of a large-image net."""

    norm: Norm

    def forward(self, ops: SimpleNamespace, buffer: Buffer, wanted: Wanted) -> Output:
        _, channels, h, w = buffer.x.shape
        output = Output.new(buffer, channels, (h + 1) // 2, (w + 1) // 2, wanted)
        ops.stem_fwd(buffer.x, *self.norm.on(buffer.mean, buffer.var), *output)
        return output

    def backward(self, ops: SimpleNamespace, gradient: Gradient, dy: Tensor, needs: Any) -> "Stem":
        buffer = gradient.buffer
        norm = self.norm.on(buffer.mean, buffer.var)
        dnorm = ops.stem_bwd(dy, buffer.x, *norm, self.norm.uses_batch, *gradient.into())
        return Stem(self.norm.gradient(*dnorm))


Layer = Bottleneck | Plain
Consumer = Transition | Head | Stem
