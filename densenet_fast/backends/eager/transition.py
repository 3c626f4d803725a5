"""BN-ReLU, 2x2 average, conv1x1. The average commutes with the convolution, and first it quarters it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...contract import Norm, NormGradient
from ._common import NormSums, bn_relu, bn_scale, conv, conv_dgrad, conv_wgrad, pieces, pixels, relu_bwd_, rows
from .batch_norm import channel_stats


def transition_fwd(x: Tensor, norm: Norm, weight: Tensor, y: Tensor, stats: Tensor | None) -> None:
    new = conv(F.avg_pool2d(bn_relu(x, norm), 2), weight)
    y.copy_(new)
    if stats is not None:
        channel_stats(new, stats)


def transition_bwd(
    dy: Tensor, x: Tensor, norm: Norm, weight: Tensor, dx: Tensor, dnorm: NormGradient, dweight: Tensor | None
) -> None:
    if dweight is not None:
        pooled = torch.cat([F.avg_pool2d(bn_relu(x[i], norm), 2) for i in pieces(x)])
        dweight.copy_(conv_wgrad(dy, pooled, weight))
        del pooled
    dpooled = conv_dgrad(dy, weight)
    scale, sums = bn_scale(norm), NormSums(norm)
    for i in pieces(x):
        activated = bn_relu(x[i], norm)
        v = torch.ops.aten.avg_pool2d_backward(dpooled[i], activated, [2, 2], [2, 2], [0, 0], False, True, None)
        relu_bwd_(v, activated)
        torch.mul(rows(v), scale, out=rows(dx[i]))
        sums.add(v, x[i], scratch=activated)
    sums.write(dnorm, pixels(x))
