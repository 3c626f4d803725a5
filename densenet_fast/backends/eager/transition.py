"""BN-ReLU, 2x2 average, conv1x1. The average commutes with the convolution, and first it quarters it."""

import torch
from torch import Tensor

from ...contract import Norm, NormGradient, accumulator
from ._common import (
    Affine,
    NormSums,
    conv,
    conv_dgrad,
    conv_wgrad,
    nhwc,
    pieces,
    pixels,
    plane,
    relu_bwd_,
    rows,
    window,
)
from .batch_norm import channel_stats


def transition_fwd(x: Tensor, norm: Norm, weight: Tensor, y: Tensor, stats: Tensor | None, pools: bool = True) -> None:
    activated = Affine(norm).relu(x)
    new = conv(_averages(activated) if pools else activated, weight)
    y.copy_(new)
    if stats is not None:
        channel_stats(new, stats)


def transition_bwd(
    dy: Tensor,
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    dx: Tensor,
    dnorm: NormGradient,
    dweight: Tensor | None,
    pools: bool = True,
) -> None:
    bn = Affine(norm)
    if dweight is not None:
        pooled = nhwc(torch.cat([_averages(bn.relu(x[i])) for i in pieces(x)])) if pools else bn.relu(x)
        dweight.copy_(conv_wgrad(dy, pooled, weight))
        del pooled
    dpooled = conv_dgrad(dy, weight)
    sums = NormSums(bn)
    for i in pieces(x):
        activated = bn.relu(x[i])
        v = _averages_bwd(dpooled[i], activated) if pools else dpooled[i]
        relu_bwd_(v, activated)
        torch.mul(rows(v), bn.scale, out=rows(dx[i]))
        sums.add(v, x[i], scratch=activated)
    sums.write(dnorm, pixels(x))


def _averages(x: Tensor) -> Tensor:
    size = window(x, 2, 1)
    if x.dim() == 5:
        return nhwc(torch.ops.aten.avg_pool3d(_poolable(x), size, size)).to(x.dtype)
    y = torch.ops.aten.avg_pool2d(plane(x), size, size)
    return nhwc(y.squeeze(2) if x.dim() == 3 else y)


def _poolable(x: Tensor) -> Tensor:
    """On the CPU PyTorch averages volumes in no narrow dtype."""
    return x.to(accumulator(x.dtype)) if x.is_cpu else x


def _averages_bwd(dy: Tensor, x: Tensor) -> Tensor:
    settings = window(x, 2, 1), window(x, 2, 1), window(x, 0, 0), False, True, None
    if x.dim() == 5:
        return nhwc(torch.ops.aten.avg_pool3d_backward(_poolable(dy), _poolable(x), *settings)).to(x.dtype)
    dx = torch.ops.aten.avg_pool2d_backward(plane(dy), plane(x), *settings)
    return nhwc(dx.squeeze(2)) if x.dim() == 3 else dx
