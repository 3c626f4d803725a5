"""The steps of a stage: plain tuples of tensors with a forward over a `Buffer` and a backward over a `Gradient`.

A stage is any number of layers (`Bottleneck`, `Plain`) and then at most one consumer of the buffer (`Transition`,
`Head`, `Stem`). A step's backward returns a tuple of its own type that holds gradients where it held tensors; those
that nobody needs may be anything.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from .buffer import Buffer, Gradient


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

    def backward(
        self, ops: SimpleNamespace, sums: Sequence[Tensor], var: Tensor | None, count: int, a: Tensor, b: Tensor
    ) -> tuple["Norm", Tensor]:
        """Gradients of gamma and beta from the two sums, and the scale gamma * rstd; adds the correction to a and b."""
        dgamma, dbeta, scale = ops.bn_bwd_finalize(*sums, var, self.gamma, self.eps, count, self.uses_batch, a, b)
        return Norm(None, None, dgamma, dbeta, self.eps), scale


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
        x, count = buffer.before(c), buffer.count
        norm1 = self.norm1.on(buffer.mean[:c], buffer.var[:c])
        norm2 = self.norm2.on(kept.mean, kept.var)
        z = kept.z
        if z is None:
            z = ops.bn_relu_conv1x1_fwd(x, *norm1, self.weight1, False)[0]

        dy, y, y_mean, a, b = gradient.of(c, c + self.growth)
        u, *sums2, dweight2 = ops.bn_relu_conv3x3_bwd(
            dy,
            y,
            y_mean,
            a,
            b,
            z,
            *norm2,
            self.weight2,
            self.drop_rate,
            self.seed,
            None,
            needs.weight2,
        )
        a2, b2 = gradient.a.new_zeros((2, u.shape[1])).unbind()
        dnorm2, scale2 = self.norm2.backward(ops, sums2, norm2.var, count, a2, b2)
        *sums1, dweight1 = ops.bn_relu_conv1x1_bwd(
            u,
            z,
            norm2.mean,
            scale2,
            a2,
            b2,
            x,
            *norm1,
            self.weight1,
            gradient.g[:, :c],
            needs.weight1,
        )
        dnorm1, _ = self.norm1.backward(ops, sums1, norm1.var, count, gradient.a[:c], gradient.b[:c])
        return Bottleneck(dnorm1, dweight1, dnorm2, dweight2)


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
        dy, y, y_mean, a, b = gradient.of(c, c + self.growth)
        _, *sums, dweight1 = ops.bn_relu_conv3x3_bwd(
            dy,
            y,
            y_mean,
            a,
            b,
            buffer.before(c),
            *norm1,
            self.weight1,
            self.drop_rate,
            self.seed,
            gradient.g[:, :c],
            needs.weight1,
        )
        dnorm1, _ = self.norm1.backward(ops, sums, norm1.var, buffer.count, gradient.a[:c], gradient.b[:c])
        return Plain(dnorm1, dweight1)


class Output(NamedTuple):
    """What a consumer makes of the buffer: y and, if they were wanted, y's statistics."""

    y: Tensor
    mean: Tensor | None = None
    var: Tensor | None = None


class Transition(NamedTuple):
    """BN-ReLU, 2x2 average, conv1x1. weight [K, C_total, 1, 1]."""

    norm: Norm
    weight: Tensor

    def forward(self, ops: SimpleNamespace, buffer: Buffer, stats: bool) -> Output:
        norm = self.norm.on(buffer.mean, buffer.var)
        return _output(ops.transition_fwd(buffer.x, *norm, self.weight, stats), stats)

    def backward(self, ops: SimpleNamespace, gradient: Gradient, dy: Tensor, needs: Any) -> "Transition":
        buffer = gradient.buffer
        norm = self.norm.on(buffer.mean, buffer.var)
        *sums, dweight = ops.transition_bwd(dy, buffer.x, *norm, self.weight, gradient.g, needs.weight)
        dnorm, _ = self.norm.backward(ops, sums, norm.var, buffer.count, gradient.a, gradient.b)
        return Transition(dnorm, dweight)


class Head(NamedTuple):
    """The final BN-ReLU and the average over the image."""

    norm: Norm

    def forward(self, ops: SimpleNamespace, buffer: Buffer, stats: bool) -> Output:
        return Output(ops.head_fwd(buffer.x, *self.norm.on(buffer.mean, buffer.var)))

    def backward(self, ops: SimpleNamespace, gradient: Gradient, dy: Tensor, needs: Any) -> "Head":
        buffer = gradient.buffer
        norm = self.norm.on(buffer.mean, buffer.var)
        sums = ops.head_bwd(dy, buffer.x, *norm, gradient.g)
        dnorm, _ = self.norm.backward(ops, sums, norm.var, buffer.count, gradient.a, gradient.b)
        return Head(dnorm)


class Stem(NamedTuple):
    """BN-ReLU-maxpool behind the first convolution of a large-image net."""

    norm: Norm

    def forward(self, ops: SimpleNamespace, buffer: Buffer, stats: bool) -> Output:
        norm = self.norm.on(buffer.mean, buffer.var)
        return _output(ops.stem_fwd(buffer.x, *norm, stats), stats)

    def backward(self, ops: SimpleNamespace, gradient: Gradient, dy: Tensor, needs: Any) -> "Stem":
        buffer = gradient.buffer
        norm = self.norm.on(buffer.mean, buffer.var)
        sums = ops.stem_bwd(dy, buffer.x, *norm, gradient.g)
        dnorm, _ = self.norm.backward(ops, sums, norm.var, buffer.count, gradient.a, gradient.b)
        return Stem(dnorm)


def _output(result: tuple[Tensor, Tensor, Tensor], stats: bool) -> Output:
    return Output(*result) if stats else Output(result[0])


Layer = Bottleneck | Plain
Consumer = Transition | Head | Stem
