"""Head: the final BN-ReLU and global average, read once from the last block's buffer."""

from torch import Tensor

from ._operation import NORM, Operation, vectors


def _fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    return x.new_empty(x.shape[:2])


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
    # y = mean over H, W of relu(bn(x)): x [N, C, H, W] -> y [N, C].
    Operation("head_fwd", f"(Tensor x, {NORM}) -> Tensor", _fwd),
    # dy [N, C]; v = gradient at the norm's output; dx = gamma * rstd * v -> dgamma, dbeta [C].
    Operation(
        "head_bwd",
        f"(Tensor dy, Tensor x, {NORM}, bool batch_stats, Tensor(a!) dx, Tensor(b!) a, Tensor(c!) b)"
        " -> (Tensor dgamma, Tensor dbeta)",
        _bwd,
    ),
)
