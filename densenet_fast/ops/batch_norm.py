"""BatchNorm's own operations: statistics, the deferred correction, running averages.

Source: Ioffe and Szegedy 2015 for the formulas; docs/internals/algorithm.md, "Deferred correction", for their division.
"""

from torch import Tensor

from ._operation import Operation, image, vectors


def _channel_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    return vectors(x)


def _bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return image(x, *x.shape[1:])


def _update_running_stats(*args: object) -> None:
    return None


OPERATIONS = (
    # x [N, C, H, W] -> mean, biased var [C].
    Operation("channel_stats", "(Tensor x) -> (Tensor mean, Tensor var)", _channel_stats),
    # v - a - b * (x - mean), a new dense NHWC tensor.
    Operation(
        "bn_bwd_apply",
        "(Tensor v, Tensor x, Tensor mean, Tensor a, Tensor b) -> Tensor",
        _bn_bwd_apply,
    ),
    # running += momentum * (batch - running) for every norm of the model in one call; the variance that enters
    # running_var is unbiased: var * count / (count - 1). Each running tensor appears at most once.
    Operation(
        "update_running_stats",
        "(Tensor(a!)[] running_mean, Tensor(b!)[] running_var, Tensor[] mean, Tensor[] var, int[] count,"
        " float[] momentum) -> ()",
        _update_running_stats,
    ),
)
