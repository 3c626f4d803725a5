"""Eager twin of ops/bn_relu_conv1x1.py."""

from torch import Tensor

from ._common import bn_relu, bn_relu_bwd, bn_scale, conv, conv_dgrad, conv_wgrad, image, rows
from .batch_norm import channel_stats, correct_


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
    z_mean, z_var = channel_stats(z) if stats else mean.new_empty((2, 0)).unbind()
    return z, z_mean, z_var


def bn_relu_conv1x1_bwd(
    u: Tensor,
    z: Tensor,
    z_mean: Tensor,
    z_var: Tensor,
    z_gamma: Tensor | None,
    z_eps: float,
    z_a: Tensor,
    z_b: Tensor,
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
    scale = bn_scale(z_var, z_gamma, z_eps)
    scaled = rows(u).mul_(scale) if u.dtype == scale.dtype else rows(u) * scale
    dz = image(correct_(scaled, z, z_mean, z_a, z_b).to(x.dtype), like=x)
    norm = mean, var, gamma, beta, eps
    dweight = weight.new_empty(0)
    if wgrad:
        dweight = conv_wgrad(dz, bn_relu(x, *norm), weight)
    return *bn_relu_bwd(conv_dgrad(dz, weight), x, *norm, batch_stats, dx, a, b), dweight
