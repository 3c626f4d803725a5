"""Eager twin of ops/transition.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import (
    Sums,
    bn_relu,
    bn_scale,
    conv,
    conv_dgrad,
    conv_wgrad,
    pieces,
    relu_bwd_,
    rows,
)
from .batch_norm import stats_if


def transition_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = conv(F.avg_pool2d(bn_relu(x, mean, var, gamma, beta, eps), 2), weight)
    return y, *stats_if(stats, y)


def transition_bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    dx: Tensor,
    wgrad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    norm = mean, var, gamma, beta, eps
    pooled = torch.cat([F.avg_pool2d(bn_relu(x[i], *norm), 2) for i in pieces(x)])
    dweight = conv_wgrad(dy, pooled, weight) if wgrad else weight.new_empty(0)
    dpooled = conv_dgrad(dy, weight)
    scale, sums = bn_scale(var, gamma, eps), Sums(mean)
    for i in pieces(x):
        activated = bn_relu(x[i], *norm)
        v = torch.ops.aten.avg_pool2d_backward(dpooled[i], activated, [2, 2], [2, 2], [0, 0], False, True, None)
        relu_bwd_(v, activated)
        torch.mul(rows(v), scale, out=rows(dx[i]))
        sums.add(v, x[i], scratch=activated)
    return *sums.result(), dweight
