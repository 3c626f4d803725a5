"""Eager twin of ops/bottleneck.py."""

from torch import Tensor

from ._common import bn_affine, bn_relu, conv


def bottleneck_infer(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight1: Tensor,
    mean2: Tensor,
    var2: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    eps2: float,
    weight2: Tensor,
    y: Tensor,
) -> None:
    scale, shift = bn_affine(mean2, var2, gamma2, beta2, eps2)
    folded = (weight1 * scale.view(-1, 1, 1, 1)).to(x.dtype)
    bottleneck = conv(bn_relu(x, mean, var, gamma, beta, eps), folded, shift.to(x.dtype)).relu_()
    y.copy_(conv(bottleneck, weight2))
