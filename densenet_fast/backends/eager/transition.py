"""BN-ReLU, 2x2 average, conv1x1. The average commutes with the convolution, and first it quarters it."""

import torch
from torch import Tensor

from ...contract import Norm, NormGradient, accumulator
from ._common import Affine, Images, bn_relu_bwd, conv, conv_dgrad, conv_wgrad, image, nhwc, pieces, plane, rows, window
from .batch_norm import row_stats


def transition_fwd(x: Tensor, norm: Norm, weight: Tensor, y: Tensor, stats: Tensor | None, pools: bool = True) -> None:
    activated = Affine(norm).relu(rows(x))
    size = x.shape[2:]
    pooled = rows(_averages(image(activated, size))) if pools else activated
    new = conv(pooled, weight, Images.of(y))
    rows(y).copy_(new)
    if stats is not None:
        row_stats(new, stats)


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
    size, images = x.shape[2:], Images.of(dy)
    if dweight is not None:
        bn = Affine(norm)
        activated = (bn.relu(rows(x[i])) for i in pieces(x))
        pooled = torch.cat([rows(_averages(image(a, size))) if pools else a for a in activated])
        dweight.copy_(conv_wgrad(rows(dy), pooled, weight, images))
        del pooled
    dpooled = image(conv_dgrad(rows(dy), weight, images), images.size)

    def gradient(i: slice, activated: Tensor) -> Tensor:
        return rows(_averages_bwd(dpooled[i], image(activated, size)) if pools else dpooled[i])

    bn_relu_bwd(x, norm, dx, dnorm, gradient)


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
