"""Stem of the large-image nets: BN-ReLU-maxpool 3x3, stride 2, padding 1. Its convolution stays with PyTorch."""

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
    batch_stats: bool,
    dx: Tensor,
    a: Tensor,
    b: Tensor,
) -> tuple[Tensor, Tensor]:
    return vectors(x)


OPERATIONS = (
    # y = maxpool(relu(bn(x))), and y's statistics [C] if y_mean is given. x [N, C, H, W], y [N, C, (H+1)//2, (W+1)//2]
    # the head of the first block's buffer.
    Operation(
        "stem_fwd",
        f"(Tensor x, {NORM}, Tensor(a!) y, Tensor(b!)? y_mean, Tensor(c!)? y_var) -> ()",
        _fwd,
    ),
    # v = gradient at the norm's output, its positions recomputed; dx = gamma * rstd * v -> dgamma, dbeta [C].
    Operation(
        "stem_bwd",
        f"(Tensor dy, Tensor x, {NORM}, bool batch_stats, Tensor(a!) dx, Tensor(b!) a, Tensor(c!) b)"
        " -> (Tensor dgamma, Tensor dbeta)",
        _bwd,
    ),
)
