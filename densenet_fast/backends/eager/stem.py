"""Eager twin of ops/stem.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import Sums, bn_relu, bn_scale, pieces, relu_bwd_, rows
from .batch_norm import stats_if


def stem_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = F.max_pool2d(bn_relu(x, mean, var, gamma, beta, eps), 3, 2, 1)
    return y, *stats_if(stats, y)


def stem_bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    dx: Tensor,
) -> tuple[Tensor, Tensor]:
    window = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    scale, sums = bn_scale(var, gamma, eps), Sums(mean)
    for i in pieces(x):
        activated = bn_relu(x[i], mean, var, gamma, beta, eps)
        _, positions = torch.ops.aten.max_pool2d_with_indices(activated, *window)
        v = torch.ops.aten.max_pool2d_with_indices_backward(dy[i], activated, *window, positions)
        relu_bwd_(v, activated)
        torch.mul(rows(v), scale, out=rows(dx[i]))
        sums.add(v, x[i], scratch=activated)
    return sums.result()
