"""BN-ReLU, 2x2 average, conv1x1. The average commutes with the convolution, and first it quarters it."""

import torch
from torch import Tensor

from ...contract import Norm, NormGradient, accumulator
from ._common import (
    NormSums,
    bn_relu,
    bn_scale,
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
    activated = bn_relu(x, norm)
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
    if dweight is not None:
        pooled = torch.cat([_averages(bn_relu(x[i], norm)) for i in pieces(x)]) if pools else bn_relu(x, norm)
        dweight.copy_(conv_wgrad(dy, pooled, weight))
        del pooled
    dpooled = conv_dgrad(dy, weight)
    scale, sums = bn_scale(norm), NormSums(norm)
    for i in pieces(x):
        activated = bn_relu(x[i], norm)
        v = _averages_bwd(dpooled[i], activated) if pools else dpooled[i]
        relu_bwd_(v, activated)
        torch.mul(rows(v), scale, out=rows(dx[i]))
        sums.add(v, x[i], scratch=activated)
    sums.write(dnorm, pixels(x))


def _averages(x: Tensor) -> Tensor:
    size = window(x, 2, 1)
    if x.dim() == 5:
        return nhwc(torch.ops.aten.avg_pool3d(_poolable(x), size, size)).to(x.dtype)
    y = torch.ops.aten.avg_pool2d(plane(x), size, size)
    return y.squeeze(2) if x.dim() == 3 else y


def _poolable(x: Tensor) -> Tensor:
    """On the CPU PyTorch averages volumes in no narrow dtype."""
    return x.to(accumulator(x.dtype)) if x.is_cpu else x


def _averages_bwd(dy: Tensor, x: Tensor) -> Tensor:
    settings = window(x, 2, 1), window(x, 2, 1), window(x, 0, 0), False, True, None
    if x.dim() == 5:
        return nhwc(torch.ops.aten.avg_pool3d_backward(_poolable(dy), _poolable(x), *settings)).to(x.dtype)
    dx = torch.ops.aten.avg_pool2d_backward(plane(dy), plane(x), *settings)
    return nhwc(dx.squeeze(2)) if x.dim() == 3 else dx
