"""Operations on images of one dimension, [N, C, L], and of three, [N, C, D, H, W].

What treats all pixels alike, a layer's first half among it, runs on any backend's operations, which take the image for
one of two dimensions: [N, C, D * H, W] and [N, C, 1, L] lie in the same memory. What looks at neighbours, the 3x3x3
convolution and the poolings, is the eager backend's, with PyTorch's convolutions.

The operations of a block run one layer, one half at a time where it has a bottleneck, as halves.py calls them.
"""

from types import SimpleNamespace
from typing import cast

from torch import Tensor

from ..backends import eager
from ..contract import Block, Half, Norm, NormGradient, Operations
from ..contract.block import TENSORS

_WEIGHT1, _WEIGHT2 = TENSORS.index("weight1"), TENSORS.index("weight2")


def operations(ops: Operations) -> Operations:
    """Those of a backend, `ops`, on such images."""

    def channel_stats(x: Tensor, stats: Tensor) -> None:
        ops.channel_stats(flat(x), stats)

    def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, dx: Tensor) -> None:
        ops.bn_bwd_apply(flat(v), flat(x), mean, correction, flat(dx))

    def block_fwd(
        x: Tensor, stats: Tensor, z: Tensor | None, block: Block, tracked: bool, begin: int, end: int, halves: int
    ) -> None:
        if halves == Half.FIRST:
            ops.block_fwd(flat(x), stats, z, _of_first_half(block), tracked, begin, end, halves)
        else:
            eager.block_fwd(x, stats, z, block, tracked, begin, end, halves)

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
            eager.block_bwd(g, correction, x, stats, z, block, gradients, u, begin, end, halves)

    def head_fwd(x: Tensor, norm: Norm, y: Tensor) -> None:
        ops.head_fwd(flat(x), norm, y)

    def head_bwd(dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
        ops.head_bwd(dy, flat(x), norm, flat(dx), dnorm)

    on_any = channel_stats, bn_bwd_apply, block_fwd, block_bwd, head_fwd, head_bwd
    on_eager = eager.transition_fwd, eager.transition_bwd, eager.stem_fwd, eager.stem_bwd
    return cast(Operations, SimpleNamespace(**{f.__name__: f for f in (*on_any, *on_eager)}))


def flat(x: Tensor) -> Tensor:
    """[N, C, D, H, W], channels innermost in memory, as [N, C, D * H, W], and [N, C, L] as [N, C, 1, L]."""
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
