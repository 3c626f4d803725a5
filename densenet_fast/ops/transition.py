"""Transition: BN-ReLU, 2x2 average, conv1x1. The average commutes with the convolution, and first it quarters it."""

from torch import Tensor

from ._operation import NORM, Operation, vectors


def _fwd(*args: object) -> None:
    return None


def _bwd(
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
    return *vectors(x), weight.new_empty(weight.shape if wgrad else 0)


OPERATIONS = (
    # y = conv1x1(avg_pool2x2(relu(bn(x))), weight), and y's statistics [K] if y_mean is given. x [N, C, H, W],
    # weight [K, C, 1, 1], y [N, K, H//2, W//2] the head of the next block's buffer. An odd last row or column is left
    # out.
    Operation(
        "transition_fwd",
        f"(Tensor x, {NORM}, Tensor weight, Tensor(a!) y, Tensor(b!)? y_mean, Tensor(c!)? y_var) -> ()",
        _fwd,
    ),
    # v = gradient at the norm's output; dx = gamma * rstd * v, written everywhere -> dgamma, dbeta [C], dweight.
    Operation(
        "transition_bwd",
        f"(Tensor dy, Tensor x, {NORM}, Tensor weight, bool batch_stats, Tensor(a!) dx, Tensor(b!) a, Tensor(c!) b,"
        " bool wgrad) -> (Tensor dgamma, Tensor dbeta, Tensor dweight)",
        _bwd,
    ),
)
