"""Eager twin of ops/bn_relu_conv1x1.py."""

from torch import Tensor

from ._common import bn_relu, bn_relu_bwd, conv, conv_dgrad, conv_wgrad
from .batch_norm import bn_bwd_apply_, stats_if


def bn_relu_conv1x1_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    z = conv(bn_relu(x, mean, var, gamma, beta, eps), weight)
    return z, *stats_if(stats, z)


def bn_relu_conv1x1_bwd(
    u: Tensor,
    z: Tensor,
    z_mean: Tensor,
    scale: Tensor,
    a: Tensor,
    b: Tensor,
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
    dz = bn_bwd_apply_(u, z, z_mean, scale, a, b)
    norm = mean, var, gamma, beta, eps
    dweight = weight.new_empty(0)
    if wgrad:
        dweight = conv_wgrad(dz, bn_relu(x, *norm), weight)
    return *bn_relu_bwd(conv_dgrad(dz, weight), x, *norm, dx), dweight
