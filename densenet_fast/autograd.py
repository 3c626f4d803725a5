"""One autograd.Function per stage: a dense block together with what consumes its buffer.

The buffer is born and dies inside the Function, so every norm that reads it, the consumer's too, defers its correction
into one pair of vectors, and saved tensors are freed stage by stage. docs/internals/algorithm.md, "Stages".
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import block
from .buffer import Buffer, Gradient, allocate, handed_out, laid_out, memory_format
from .steps import Consumer, Kept, Layer, Norm, Output, Wanted, flatten, unflatten
from .uncompiled import uncompiled

Stats = tuple[Tensor, Tensor]  # mean, var [C]


TENSOR = object()  # stands for a tensor among a stage's constants


class Stage(NamedTuple):
    """What a stage is, apart from its tensors."""

    ops: SimpleNamespace  # the operations of one backend
    types: tuple[type, ...]  # of the steps: the layers and then, if `has_consumer`, the consumer
    constants: list[Any]  # the leaves of the steps, TENSOR for each tensor
    has_consumer: bool
    efficient: bool  # recompute z in backward instead of keeping it
    extend: bool  # x is the head of a buffer that has room for the layers
    wanted: Wanted  # of the consumer

    @property
    def num_layers(self) -> int:
        return len(self.types) - self.has_consumer

    def steps(self, tensors: Iterable[Tensor]) -> tuple[list[Any], Any]:
        """(layers, consumer or None) with their constants and `tensors`."""
        values = iter(tensors)
        return self._split([next(values) if c is TENSOR else c for c in self.constants])

    def flags(self, of_tensors: Iterable[bool]) -> tuple[list[Any], Any]:
        """(layers, consumer or None) with a flag for each leaf, false for the constants."""
        values = iter(of_tensors)
        return self._split([c is TENSOR and next(values) for c in self.constants])

    def _split(self, leaves: list[Any]) -> tuple[list[Any], Any]:
        steps = unflatten(self.types, leaves)
        return (steps[:-1], steps[-1]) if self.has_consumer else (steps, None)


class Result(NamedTuple):
    """A stage's output, and the statistics each of its norms took from the batch (None where it took none), in the
    order of the steps."""

    output: Output
    batch_stats: list[Stats | None]


def run(
    ops: SimpleNamespace,
    x: Tensor,
    stats: Stats | None,
    layers: Sequence[Layer],
    consumer: Consumer | None,
    *,
    wanted: Wanted,
    extend: bool = False,
    efficient: bool = False,
) -> Result:
    """A stage's forward: x [N, C0, H, W] through `layers` and `consumer`; differentiable where anything needs it."""
    steps: list[Layer | Consumer] = [*layers] if consumer is None else [*layers, consumer]
    if not steps:
        return Result(Output(x.clone(memory_format=wanted.layout or torch.channels_last)), [])
    leaves = flatten(steps)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *leaves) if isinstance(t, Tensor))
    if differentiable:
        leaves = flatten(_with_own_statistics(steps))
    constants = [TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    stage = Stage(ops, tuple(map(type, steps)), constants, consumer is not None, efficient, extend, wanted)
    if differentiable:
        mean, var = stats or (None, None)
        y, y_mean, y_var, mean, var, *of_z = StageFunction.apply(stage, x, mean, var, *tensors)
        output = Output(y, y_mean, y_var)
        z_stats = list(zip(of_z[::2], of_z[1::2], strict=True))
    else:
        output, buffer, kept = _forward(stage, x, stats, layers, consumer, differentiable=False)
        mean, var = buffer.mean, buffer.var
        z_stats = [(k.mean, k.var) for k in kept]

    batch_stats: list[Stats | None] = []
    c = x.shape[1]
    for layer, z in zip(layers, z_stats, strict=True):
        first, *rest = layer.norms
        batch_stats.append((mean[:c], var[:c]) if first.uses_batch else None)
        batch_stats += [z if norm.uses_batch else None for norm in rest]
        c += layer.growth
    if consumer is not None:
        batch_stats.append((mean, var) if consumer.norm.uses_batch else None)
    return Result(output, batch_stats)


def _with_own_statistics(steps: list[Any]) -> list[Any]:
    """The steps with copies of the statistics given to their norms: before a backward reads them, another forward may
    have updated the running statistics that they are."""
    norms = [field for step in steps for field in step if isinstance(field, Norm)]
    given = [vector for norm in norms for vector in (norm.mean, norm.var) if vector is not None]
    if not given:
        return steps
    copies = iter(torch.cat(given).split([vector.shape[0] for vector in given]))

    def own(norm: Norm) -> Norm:
        return norm if norm.uses_batch else norm._replace(mean=next(copies), var=next(copies))

    return [type(step)(*[own(field) if isinstance(field, Norm) else field for field in step]) for step in steps]


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """The operations convert nothing by themselves: `functional` has chosen all dtypes."""
    device = x.device.type
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


def _forward(
    stage: Stage,
    x: Tensor,
    stats: Stats | None,
    layers: Sequence[Layer],
    consumer: Consumer | None,
    *,
    differentiable: bool,
) -> tuple[Output, Buffer, list[Kept]]:
    """The forward pass itself. Where it is not to be differentiated and no norm takes statistics of the batch, the
    layers take their inference operation."""
    norms = [norm for layer in layers for norm in layer.norms]
    norms += [consumer.norm] if consumer is not None else []
    tracked = any(norm.uses_batch for norm in norms)
    channels = x.shape[1] + sum(layer.growth for layer in layers)
    with _without_autocast(x):
        buffer = Buffer.start(stage.ops, x, stats, channels, tracked, stage.extend)
        keep_z, infer = differentiable and not stage.efficient, not (differentiable or tracked)
        kept = block.forward(stage.ops, buffer, layers, x.shape[1], keep_z=keep_z, infer=infer)
        output = Output(buffer.x) if consumer is None else consumer.forward(stage.ops, buffer, stage.wanted)
        if stage.wanted.layout is not None and output.y.dim() == 4:
            shared = consumer is None and differentiable
            output = output._replace(y=handed_out(output.y, stage.wanted.layout, shared))
    return output, buffer, kept


class StageFunction(torch.autograd.Function):
    """(stage, x, mean, var, *tensors) -> y, y_mean, y_var, buffer mean, buffer var, then mean, var of every z.

    All outputs but y are statistics, not differentiable.
    """

    @staticmethod
    def forward(
        ctx: Any, stage: Stage, x: Tensor, mean: Tensor | None, var: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        stats = None if mean is None or var is None else (mean, var)
        layers, consumer = stage.steps(tensors)
        output, buffer, kept = _forward(stage, x, stats, layers, consumer, differentiable=True)
        ctx.stage, ctx.tracked, ctx.channels, ctx.layout = stage, buffer.tracked, x.shape[1], memory_format(x)
        ctx.save_for_backward(buffer.x, buffer.mean, buffer.var, *flatten(kept), *tensors)
        ctx.set_materialize_grads(False)

        z_stats = (s for k in kept for s in (k.mean, k.var))
        statistics = [output.mean, output.var, buffer.mean, buffer.var, *z_stats]
        ctx.mark_non_differentiable(*(s for s in statistics if s is not None))
        return output.y, *statistics

    @staticmethod
    @uncompiled  # the engine may call it inside a frame that torch.compile traces
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "densenet_fast: a fused stage can be differentiated once, got backward with create_graph=True; "
                "for double backward run the plain layers: model.set_backend('plain')"
            )
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch._C._functorch.is_batchedtensor(dy) or torch._C._functorch.is_legacy_batchedtensor(dy):
            raise RuntimeError(
                "densenet_fast: a fused stage takes one gradient at a time, got a batch (is_grads_batched=True, "
                "vectorize=True, vmap); for these run the plain layers: model.set_backend('plain')"
            )
        stage: Stage = ctx.stage
        x, mean, var, *saved = ctx.saved_tensors
        types = (Kept,) * stage.num_layers
        size = len(types) * len(Kept._fields)
        kept = [k._replace(z=k.z if k.z is None else laid_out(k.z)) for k in unflatten(types, saved[:size])]
        layers, consumer = stage.steps(saved[size:])
        needs_x, needs = ctx.needs_input_grad[1], stage.flags(ctx.needs_input_grad[4:])
        with _without_autocast(x):
            dx, gradients = _backward(
                stage.ops,
                Buffer(laid_out(x), mean, var, ctx.tracked),
                layers,
                consumer,
                kept,
                dy,
                needs_x,
                needs,
                ctx.channels,
            )
        if dx is not None:
            dx = handed_out(dx, ctx.layout, shared=False)
        leaves = zip(flatten(gradients), stage.constants, strict=True)
        of_tensors = [gradient for gradient, constant in leaves if constant is TENSOR]
        wanted = zip(of_tensors, ctx.needs_input_grad[4:], strict=True)
        return None, dx, None, None, *(gradient if need else None for gradient, need in wanted)


def _backward(
    ops: SimpleNamespace,
    buffer: Buffer,
    layers: Sequence[Layer],
    consumer: Consumer | None,
    kept: Sequence[Kept],
    dy: Tensor,
    needs_x: bool,
    needs: Any,
    channels: int,
) -> tuple[Tensor | None, list[Any]]:
    """Gradients of x, or None if it needs none, and of the steps; a step that needs none is returned unchanged."""
    g = allocate(buffer.x.shape, like=buffer.x)
    gradient = Gradient(buffer, g)
    dconsumer = []
    if consumer is None:
        g.copy_(dy)
    else:
        if dy.dim() == 4:
            dy = dy.contiguous(memory_format=torch.channels_last)
        dconsumer.append(consumer.backward(ops, gradient, dy, needs[1]))
    dlayers = block.backward(ops, buffer, gradient, layers, channels, kept, needs_x, needs[0])
    dx = gradient.resolve(ops, channels) if needs_x else None
    return dx, [*dlayers, *dconsumer]
