"""The layers of a dense block, forward and backward: in one operation where the backend has it, else one by one."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from .buffer import Buffer, Gradient
from .ops._operation import image, vector
from .steps import Bottleneck, Kept, Layer, flatten


def forward(
    ops: SimpleNamespace, buffer: Buffer, layers: Sequence[Layer], c: int, *, keep_z: bool, infer: bool
) -> list[Kept]:
    """The layers whose input begins with the first `c` channels of the buffer. `infer` lets those on running statistics
    take their inference operation."""
    if _is_one_operation(ops, layers):
        return _forward_in_one(ops, buffer, layers, c, keep_z)
    kept = []
    for layer in layers:
        if infer and layer.seed is None and not any(norm.uses_batch for norm in layer.norms):
            layer.infer(ops, buffer, c)
            kept.append(Kept())
        else:
            kept.append(layer.forward(ops, buffer, c, keep_z))
        c += layer.growth
    return kept


def backward(
    ops: SimpleNamespace,
    buffer: Buffer,
    gradient: Gradient,
    layers: Sequence[Layer],
    c: int,
    kept: Sequence[Kept],
    needs_x: bool,
    needs: Sequence[Any],
) -> tuple[Layer, ...]:
    """Gradients of the layers; one below all that need a gradient is returned unchanged."""
    lowest = 0 if needs_x else next((i for i, n in enumerate(needs) if any(flatten([n]))), len(layers))
    below = layers[:lowest]
    starts = [c]
    for layer in layers:
        starts.append(starts[-1] + layer.growth)
    layers, kept, needs, starts = layers[lowest:], kept[lowest:], needs[lowest:], starts[lowest:]
    if _is_one_operation(ops, layers):
        return (*below, *_backward_in_one(ops, buffer, gradient, layers, starts[0], kept, needs))
    found = [
        layers[i].backward(ops, buffer, gradient, starts[i], kept[i], needs[i]) for i in reversed(range(len(layers)))
    ]
    return (*below, *reversed(found))


def _is_one_operation(ops: SimpleNamespace, layers: Sequence[Layer]) -> bool:
    return hasattr(ops, "dense_block_fwd") and bool(layers) and all(isinstance(layer, Bottleneck) for layer in layers)


def _lists(layers: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """`tensors` and `numbers` of ops/dense_block.py."""
    tensors, numbers = [], []
    for layer in layers:
        tensors += [*layer.norm1[:4], layer.weight1, *layer.norm2[:4], layer.weight2, layer.seed]
        numbers += [layer.norm1.eps, layer.norm2.eps, layer.drop_rate]
    return tensors, numbers


def _forward_in_one(ops: SimpleNamespace, buffer: Buffer, layers: Sequence[Any], c: int, keep_z: bool) -> list[Kept]:
    widths = [layer.weight1.shape[0] for layer in layers]
    taken = [width if layer.norm2.uses_batch else 0 for width, layer in zip(widths, layers, strict=True)]
    z = [image(buffer.x, width, *buffer.x.shape[2:]) for width in widths if keep_z]
    mean, var = (whole.split_with_sizes(taken) for whole in buffer.mean.new_empty((2, sum(taken))).unbind())
    ops.dense_block_fwd(buffer.x, buffer.mean, buffer.var, buffer.tracked, c, *_lists(layers), z, mean, var)
    stats = [pair if size else (None, None) for size, pair in zip(taken, zip(mean, var, strict=True), strict=True)]
    return [Kept(z[i] if keep_z else None, *pair) for i, pair in enumerate(stats)]


def _backward_in_one(
    ops: SimpleNamespace,
    buffer: Buffer,
    gradient: Gradient,
    layers: Sequence[Any],
    c: int,
    kept: Sequence[Kept],
    needs: Sequence[Any],
) -> list[Bottleneck]:
    empty = buffer.mean.new_empty(0)
    gradients: list[Any] = []
    for layer, needed in zip(layers, needs, strict=True):
        for weight, wanted in ((layer.weight1, needed.weight1), (layer.weight2, needed.weight2)):
            dnorm = (vector(buffer.x, weight.shape[1]) for _ in range(2))
            dweight = weight.new_empty(weight.shape if wanted else 0)
            gradients += [*dnorm, dweight]
    ops.dense_block_bwd(
        *gradient.into(),
        buffer.x,
        buffer.mean,
        buffer.var,
        c,
        *_lists(layers),
        [k.z for k in kept if k.z is not None],
        [empty if k.mean is None else k.mean for k in kept],
        [empty if k.var is None else k.var for k in kept],
        gradients,
    )
    found = []
    for i, layer in enumerate(layers):
        dgamma1, dbeta1, dweight1, dgamma2, dbeta2, dweight2 = gradients[6 * i : 6 * i + 6]
        dnorm1, dnorm2 = layer.norm1.gradient(dgamma1, dbeta1), layer.norm2.gradient(dgamma2, dbeta2)
        found.append(Bottleneck(dnorm1, dweight1, dnorm2, dweight2))
    return found
