"""Stages of which a backend has kernels for one part and PyTorch has the rest: images of one dimension, [N, C, L], and
of three, [N, C, D, H, W]; dilated 3x3 convolutions; transitions that do not pool.

What treats all pixels alike, a layer's first half among it, runs on any backend's operations, which take an image of
one or three dimensions for one of two: [N, C, 1, L] and [N, C, D * H, W] lie in the same memory. What looks at
neighbours, the convolutions and the poolings that no kernel has, is the eager backend's, with PyTorch's own.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from .. import backends
from ..backends import eager
from ..contract import DECLARATIONS, Block, Half, Norm, NormGradient, Operations
from ..contract.block import TENSORS
from .spec import StageSpec

_WEIGHT1, _WEIGHT2 = TENSORS.index("weight1"), TENSORS.index("weight2")


def operations(ops: Operations, spec: StageSpec) -> Operations:
    """Those of a backend, `ops`, for a stage; for its layers there is `of_layer`."""
    pools = spec.consumer is None or spec.consumer.pools
    if spec.dims == 2 and pools:
        return ops
    found: dict[str, Any] = {name: getattr(ops, name) for name in DECLARATIONS}
    if spec.dims != 2:
        found |= _on_pixels(ops)
        of_pytorch = backends.operations("eager", torch.device("cpu"))  # they serve any device, and count FLOPs
        for name in ("transition_fwd", "transition_bwd", "stem_fwd", "stem_bwd"):
            found[name] = getattr(of_pytorch, name)
    if not pools:
        for operation in (eager.transition_fwd, eager.transition_bwd):
            found[operation.__name__] = partial(operation, pools=False)
    return cast(Operations, SimpleNamespace(**found))


def is_mixed(spec: StageSpec, number: int) -> bool:
    """Whether the convolution of a layer's second half is PyTorch's."""
    return spec.dims != 2 or spec.layers[number].dilation != 1


def of_layer(ops: Operations, spec: StageSpec, number: int) -> Operations:
    """`operations` as the layer of this number needs them, which run it one half at a time (halves.py)."""
    if not is_mixed(spec, number):
        return ops
    dilation = spec.layers[number].dilation

    def block_fwd(
        x: Tensor, stats: Tensor, z: Tensor | None, block: Block, tracked: bool, begin: int, end: int, halves: int
    ) -> None:
        if halves == Half.FIRST:
            ops.block_fwd(flat(x), stats, z, _of_first_half(block), tracked, begin, end, halves)
        else:
            eager.block_fwd(x, stats, z, block, tracked, begin, end, halves, dilation)

    def block_bwd(
        g: Tensor,
        correction: Tensor,
        x: Tensor,
        stats: Tensor,
        z: Tensor | None,
        block: Block,
        gradients: list[Tensor | None],
        u: Tensor | None,
        begin: int,
        end: int,
        halves: int,
    ) -> None:
        if halves == Half.FIRST:
            assert u is not None
            wanted = [None if i == _WEIGHT2 else t for i, t in enumerate(gradients)]
            wanted[_WEIGHT1] = _pointwise(wanted[_WEIGHT1])
            images = flat(g), correction, flat(x), stats, z
            ops.block_bwd(*images, _of_first_half(block), wanted, flat(u), begin, end, halves)
        else:
            eager.block_bwd(g, correction, x, stats, z, block, gradients, u, begin, end, halves, dilation)

    return cast(Operations, SimpleNamespace(block_fwd=block_fwd, block_bwd=block_bwd))


def _on_pixels(ops: Operations) -> dict[str, Any]:
    """The operations of a backend that treat all pixels alike, on images of any dimensions."""

    def channel_stats(x: Tensor, stats: Tensor) -> None:
        ops.channel_stats(flat(x), stats)

    def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, dx: Tensor) -> None:
        ops.bn_bwd_apply(flat(v), flat(x), mean, correction, flat(dx))

    def head_fwd(x: Tensor, norm: Norm, y: Tensor) -> None:
        ops.head_fwd(flat(x), norm, y)

    def head_bwd(dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
        ops.head_bwd(dy, flat(x), norm, flat(dx), dnorm)

    return {f.__name__: f for f in (channel_stats, bn_bwd_apply, head_fwd, head_bwd)}


def flat(x: Tensor) -> Tensor:
    """[N, C, D, H, W], channels innermost in memory, as [N, C, D * H, W], and [N, C, L] as [N, C, 1, L]."""
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        return x.unsqueeze(2)
    n, c, d, h, w = x.shape
    return x.view(n, c, d * h, w)


def _pointwise(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.view(*weight.shape[:2], 1, 1)


def _of_first_half(block: Block) -> Block:
    """A block of one layer with bottleneck, with weights of two dimensions; the second one's is not read."""
    tensors = list(block.tensors)
    tensors[_WEIGHT1] = _pointwise(tensors[_WEIGHT1])
    weight2 = tensors[_WEIGHT2]
    assert weight2 is not None
    tensors[_WEIGHT2] = weight2.new_empty((*weight2.shape[:2], 3, 3))
    return block._replace(tensors=tensors)
