"""Eager twin of ops/transition.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import (
    NormGradient,
    bn_relu,
    bn_scale,
    conv,
    conv_dgrad,
    conv_wgrad,
    pieces,
    pixels,
    relu_bwd_,
    rows,
)
from .batch_norm import stats_into


def transition_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    y: Tensor,
    y_mean: Tensor | None,
    y_var: Tensor | None,
) -> None:
    new = conv(F.avg_pool2d(bn_relu(x, mean, var, gamma, beta, eps), 2), weight)
    y.copy_(new)
    stats_into(y_mean, y_var, new)


def transition_bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    batch_stats: bool,
    dx: Tensor,
    a: Tensor,
    b: Tensor,
    wgrad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    norm = mean, var, gamma, beta, eps
    pooled = torch.cat([F.avg_pool2d(bn_relu(x[i], *norm), 2) for i in pieces(x)])
    dweight = conv_wgrad(dy, pooled, weight) if wgrad else weight.new_empty(0)
    dpooled = conv_dgrad(dy, weight)
    scale, gradient = bn_scale(var, gamma, eps), NormGradient(mean)
    for i in pieces(x):
        activated = bn_relu(x[i], *norm)
        v = torch.ops.aten.avg_pool2d_backward(dpooled[i], activated, [2, 2], [2, 2], [0, 0], False, True, None)
        relu_bwd_(v, activated)
        torch.mul(rows(v), scale, out=rows(dx[i]))
        gradient.add(v, x[i], scratch=activated)
    return *gradient.finish(var, gamma, eps, pixels(x), batch_stats, a, b), dweight
