"""Stem of the large-image nets: BN-ReLU-maxpool 3x3, stride 2, padding 1. Its convolution stays with PyTorch."""

from torch import Tensor

from ._operation import NORM, Operation, image, sums, vector


def _fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    y = image(x, channels, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
    return y, vector(x, channels if stats else 0), vector(x, channels if stats else 0)


def _bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    dx: Tensor,
) -> tuple[Tensor, Tensor]:
    return sums(x)


OPERATIONS = (
    # y = maxpool(relu(bn(x))): x [N, C, H, W] -> y [N, C, (H+1)//2, (W+1)//2] dense NHWC, and y's statistics [C] if
    # `stats`.
    Operation(
        "stem_fwd",
        f"(Tensor x, {NORM}, bool stats) -> (Tensor y, Tensor y_mean, Tensor y_var)",
        _fwd,
    ),
    # v = gradient at the norm's output, its positions recomputed; dx = gamma * rstd * v -> sum_v, sum_vx [C].
    Operation(
        "stem_bwd",
        f"(Tensor dy, Tensor x, {NORM}, Tensor(a!) dx) -> (Tensor sum_v, Tensor sum_vx)",
        _bwd,
    ),
)
