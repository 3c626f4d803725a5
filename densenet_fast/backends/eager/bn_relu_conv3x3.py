"""Eager twin of ops/bn_relu_conv3x3.py."""

from torch import Tensor

from ._common import bn_relu, bn_relu_bwd, conv, conv_dgrad, conv_wgrad, rows
from .batch_norm import bn_bwd_apply, stats_into
from .dropout import dropout_mask


def bn_relu_conv3x3_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    drop_rate: float,
    seed: Tensor | None,
    y: Tensor,
    y_mean: Tensor | None,
    y_var: Tensor | None,
) -> None:
    new = conv(bn_relu(x, mean, var, gamma, beta, eps), weight)
    if seed is not None:
        rows(new).mul_(dropout_mask(rows(new), drop_rate, seed))
    y.copy_(new)
    stats_into(y_mean, y_var, new)


def bn_relu_conv3x3_bwd(
    dy: Tensor,
    y: Tensor,
    y_mean: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    drop_rate: float,
    seed: Tensor | None,
    batch_stats: bool,
    dx: Tensor | None,
    a: Tensor,
    b: Tensor,
    wgrad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d = bn_bwd_apply(dy, y, y_mean, y_a, y_b)
    if seed is not None:
        rows(d).mul_(dropout_mask(rows(d), drop_rate, seed))
    norm = mean, var, gamma, beta, eps
    dweight = weight.new_empty(0)
    if wgrad:
        dweight = conv_wgrad(d, bn_relu(x, *norm), weight)
    u = conv_dgrad(d, weight)
    dnorm = bn_relu_bwd(u, x, *norm, batch_stats, dx, a, b)
    return u if dx is None else u.new_empty(0), *dnorm, dweight
