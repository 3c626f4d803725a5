"""Transition: BN-ReLU, 2x2 average, conv1x1. The average commutes with the convolution, and first it quarters it."""

from torch import Tensor

from ._operation import NORM, Operation, image, sums, vector


def _fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width = weight.shape[0]
    y = image(x, width, x.shape[2] // 2, x.shape[3] // 2)
    return y, vector(x, width if stats else 0), vector(x, width if stats else 0)


def _bwd(
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
    return *sums(x), weight.new_empty(weight.shape if wgrad else 0)


OPERATIONS = (
    # y = conv1x1(avg_pool2x2(relu(bn(x))), weight): x [N, C, H, W], weight [K, C, 1, 1] -> y [N, K, H//2, W//2] dense
    # NHWC, and y's statistics [K] if `stats`. An odd last row or column is left out.
    Operation(
        "transition_fwd",
        f"(Tensor x, {NORM}, Tensor weight, bool stats) -> (Tensor y, Tensor y_mean, Tensor y_var)",
        _fwd,
    ),
    # v = gradient at the norm's output; dx = gamma * rstd * v, written everywhere -> sum_v, sum_vx [C], dweight.
    Operation(
        "transition_bwd",
        f"(Tensor dy, Tensor x, {NORM}, Tensor weight, Tensor(a!) dx, bool wgrad)"
        " -> (Tensor sum_v, Tensor sum_vx, Tensor dweight)",
        _bwd,
    ),
)
