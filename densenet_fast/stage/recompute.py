"""A stage's backward that autograd can differentiate again, or run for a batch of gradients at once.

The stage is recomputed by PyTorch's own operations from what its forward has saved, and autograd differentiates those.
What they keep, as much as plain layers do, exists only where it is used.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import BatchNorm
from . import convolution
from .dropout import mask_of
from .schedule import Stage


def edges(x: Tensor, tensors: Sequence[Tensor], copied: Sequence[int]) -> list[Tensor | None]:
    """For x, and for each of the tensors if any of the `copied` needs one, an empty tensor in its place in autograd's
    graph: gradients can go there when the tensor itself has gone. None for leaves, which the graph itself knows."""
    found = [_edge(x)]
    if any(tensors[i].grad_fn is not None for i in copied):
        found += [_edge(tensor) if i in copied else None for i, tensor in enumerate(tensors)]
    return found


def _edge(tensor: Tensor) -> Tensor | None:
    if tensor.grad_fn is None:
        return None
    # To autograd no view, as which it would follow the changes of the buffer that x begins.
    (edge,) = torch.unsafe_chunk(tensor, 1)
    edge.data = tensor.new_empty((0,))
    return edge


def is_batched(*gradients: Tensor | None) -> bool:
    """Whether any of them stands for several gradients: is_grads_batched=True, vectorize=True."""
    return any(
        torch._C._functorch.is_batchedtensor(dy) or torch._C._functorch.is_legacy_batchedtensor(dy)
        for dy in gradients
        if dy is not None
    )


def backward(
    node: Any,
    stage: Stage,
    x: Tensor,
    convolves: bool,
    layout: torch.memory_format,
    tensors: Sequence[Tensor],
    seeds: Tensor | None,
    dy: Tensor | None,
    dbuffer: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of x [N, C0, H, W] and of the `tensors`, where `node`, the stage's in autograd's graph, needs them.

    x, tensors: their values, as the forward has saved them; convolves: whether x are images for the stage's
    convolution; layout: the memory format that PyTorch's layers give x, by which gradients of any order get theirs;
    dy, dbuffer: as `schedule.backward` has them.
    """
    if stage.spec.synchronised:
        raise RuntimeError(
            "densenet_fast: statistics of several processes (SyncBatchNorm) can be differentiated once, one gradient "
            "at a time: got backward with create_graph=True or a batch of gradients, expected neither, or BatchNorm2d"
        )
    again = torch.is_grad_enabled()
    needs = [node.needs_input_grad[i] for i in (1, *range(-len(tensors), 0))]
    x = x.detach().to(stage.dtype)
    values = [x if convolves else x.contiguous(memory_format=layout), *tensors]
    with torch.enable_grad():
        for i, need in enumerate(needs):
            if need and not again:
                values[i] = values[i].detach().requires_grad_()
            elif need and not values[i].requires_grad:  # what was saved is a copy
                values[i] = _Attached.apply(_place(node, i, len(tensors)), values[i])
            elif need:  # whose own hooks are called with what is returned
                values[i] = values[i].view_as(values[i])
        outputs = zip(_forward(stage, values[0], convolves, values[1:], seeds), (dy, dbuffer), strict=True)
        given = [(output, gradient) for output, gradient in outputs if gradient is not None]
    wanted = [value for value, need in zip(values, needs, strict=True) if need]
    ys, dys = zip(*given, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=again, allow_unused=dy is None))
    return [next(found) if need else None for need in needs]


def _place(node: Any, i: int, count: int) -> Tensor:
    """A tensor in the place in autograd's graph of x, or of tensor i - 1 of `count`."""
    edge = node.edges[i] if i < len(node.edges) else None
    return node.next_functions[i - count - 1 if i else 0][0].variable if edge is None else edge


class _Attached(torch.autograd.Function):
    """(a tensor in autograd's graph, its value) -> the value in its place."""

    @staticmethod
    def forward(ctx: Any, edge: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


def _forward(
    stage: Stage, x: Tensor, convolves: bool, tensors: Sequence[Tensor], seeds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The stage's output, and its buffer."""
    spec, slots = stage.spec, stage.spec.full(tensors)
    if convolves:
        x = convolution.convolved(spec, x, slots)
    values = x.numel() // x.shape[1]  # of a channel
    for layer in stage.block(slots, seeds).layers(spec.total, values):
        dilation = spec.layers[layer.number].dilation
        new = _conv(_bn_relu(x, layer.norm1), layer.weight1, dilation)
        if layer.weight2 is not None:
            new = _conv(_bn_relu(new, layer.norm2), layer.weight2, dilation)
        if layer.seed is not None:
            new = new * _dropout_mask(new, layer.drop_rate, layer.seed)
        if seeds is not None and spec.drops_channels:
            new = new * mask_of(seeds, layer, spec)
        x = torch.cat([x, new], 1)
    buffer = x
    if spec.consumer is None:
        return x, buffer
    mean, var, gamma, beta, weight = slots[spec.consumer_slots]
    x = _bn_relu(x, BatchNorm(mean, var, gamma, beta, spec.consumer.eps))
    if spec.consumer.kind == "head":
        return x.flatten(2).mean(2), buffer
    if spec.consumer.kind == "stem":
        return _MAX_POOLS[spec.dims](x, 3, 2, 1), buffer
    assert weight is not None
    return _conv(_AVERAGE_POOLS[spec.dims](x, 2) if spec.consumer.pools else x, weight), buffer


# By the number of the images' dimensions.
_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _bn_relu(x: Tensor, norm: BatchNorm) -> Tensor:
    return F.relu(F.batch_norm(x, norm.mean, norm.var, norm.gamma, norm.beta, norm.uses_batch, 0.0, norm.eps))


def _conv(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    return _CONVOLUTIONS[x.dim() - 2](x, weight, padding=weight.shape[-1] // 2 * dilation, dilation=dilation)


def _dropout_mask(x: Tensor, drop_rate: float, seed: Tensor) -> Tensor:
    """The mask that every backend's kernels apply to x [N, G, H, W]."""
    from ..backends.eager.dropout import dropout_mask  # a backend is imported when it is first used

    pixels = x.detach().movedim(1, -1)
    return dropout_mask(pixels.reshape(-1, x.shape[1]), drop_rate, seed).view(pixels.shape).movedim(-1, 1)
