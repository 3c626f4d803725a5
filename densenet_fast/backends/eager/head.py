"""Eager twin of ops/head.py."""

from torch import Tensor

from ._common import bn_relu, bn_relu_bwd, nhwc


def head_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    return bn_relu(x, mean, var, gamma, beta, eps).mean((2, 3))


def head_bwd(
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
    v = nhwc((dy / (x.shape[2] * x.shape[3]))[:, :, None, None].expand_as(x))
    dx.zero_()
    return bn_relu_bwd(v, x, mean, var, gamma, beta, eps, batch_stats, dx, a, b)
