"""BN, ReLU and 3x3 max pooling of a large-image net."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...contract import Norm, NormGradient
from ._common import NormSums, bn_relu, bn_scale, pieces, pixels, relu_bwd_, rows
from .batch_norm import channel_stats


def stem_fwd(x: Tensor, norm: Norm, y: Tensor, stats: Tensor | None) -> None:
    new = F.max_pool2d(bn_relu(x, norm), 3, 2, 1)
    y.copy_(new)
    if stats is not None:
        channel_stats(new, stats)


def stem_bwd(dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
    window = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    scale, sums = bn_scale(norm), NormSums(norm)
    for i in pieces(x):
        activated = bn_relu(x[i], norm)
        _, positions = torch.ops.aten.max_pool2d_with_indices(activated, *window)
        v = torch.ops.aten.max_pool2d_with_indices_backward(dy[i], activated, *window, positions)
        relu_bwd_(v, activated)
        torch.mul(rows(v), scale, out=rows(dx[i]))
        sums.add(v, x[i], scratch=activated)
    sums.write(dnorm, pixels(x))
