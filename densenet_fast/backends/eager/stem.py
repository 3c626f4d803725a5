"""Eager twin of ops/stem.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import NormGradient, bn_relu, bn_scale, pieces, pixels, relu_bwd_, rows
from .batch_norm import stats_into


def stem_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    y: Tensor,
    y_mean: Tensor | None,
    y_var: Tensor | None,
) -> None:
    new = F.max_pool2d(bn_relu(x, mean, var, gamma, beta, eps), 3, 2, 1)
    y.copy_(new)
    stats_into(y_mean, y_var, new)


def stem_bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    batch_stats: bool,
    dx: Tensor,
    a: Tensor,
    b: Tensor,
) -> tuple[Tensor, Tensor]:
    window = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    scale, gradient = bn_scale(var, gamma, eps), NormGradient(mean)
    for i in pieces(x):
        activated = bn_relu(x[i], mean, var, gamma, beta, eps)
        _, positions = torch.ops.aten.max_pool2d_with_indices(activated, *window)
        v = torch.ops.aten.max_pool2d_with_indices_backward(dy[i], activated, *window, positions)
        relu_bwd_(v, activated)
        torch.mul(rows(v), scale, out=rows(dx[i]))
        gradient.add(v, x[i], scratch=activated)
    return gradient.finish(var, gamma, eps, pixels(x), batch_stats, a, b)
