"""BN, ReLU and 3x3 max pooling of a large-image net."""

import torch
from torch import Tensor

from ...contract import Norm, NormGradient
from ._common import Affine, bn_relu_bwd, image, nhwc, plane, rows, window
from .batch_norm import channel_stats


def stem_fwd(x: Tensor, norm: Norm, y: Tensor, stats: Tensor | None) -> None:
    new, _ = _maxima(image(Affine(norm).relu(rows(x)), x.shape[2:]))
    y.copy_(new)
    if stats is not None:
        channel_stats(new, stats)


def stem_bwd(dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
    def gradient(i: slice, activated: Tensor) -> Tensor:
        activated = image(activated, x.shape[2:])
        _, positions = _maxima(activated)
        return rows(_maxima_bwd(dy[i], activated, positions))

    bn_relu_bwd(x, norm, dx, dnorm, gradient)


def _maxima(x: Tensor) -> tuple[Tensor, Tensor]:
    """And their positions."""
    if x.dim() == 5:
        return torch.ops.aten.max_pool3d_with_indices(x, *_settings(x))
    y, positions = torch.ops.aten.max_pool2d_with_indices(plane(x), *_settings(x))
    return y.squeeze(2) if x.dim() == 3 else y, positions


def _maxima_bwd(dy: Tensor, x: Tensor, positions: Tensor) -> Tensor:
    if x.dim() == 5:
        return nhwc(torch.ops.aten.max_pool3d_with_indices_backward(dy, x, *_settings(x), positions))
    dx = torch.ops.aten.max_pool2d_with_indices_backward(plane(dy), plane(x), *_settings(x), positions)
    return nhwc(dx.squeeze(2)) if x.dim() == 3 else dx


def _settings(x: Tensor) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Size, stride, padding, dilation, and whether the output's size is rounded up."""
    return window(x, 3, 1), window(x, 2, 1), window(x, 1, 0), window(x, 1, 1), False
