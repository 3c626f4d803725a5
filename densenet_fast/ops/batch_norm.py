"""BatchNorm's own operations: statistics, the end of a backward reduction, the deferred correction, running averages.

Source: Ioffe and Szegedy 2015 for the formulas; docs/design.md, "Deferred correction", for their division.
"""

from torch import Tensor

from ._operation import Operation, image, sums, vector


def _channel_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    return sums(x)


def _bn_bwd_finalize(
    sum_v: Tensor,
    sum_vx: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    eps: float,
    count: int,
    batch_stats: bool,
    a: Tensor,
    b: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    size = sum_v.shape[0]
    return vector(sum_v, size), vector(sum_v, size), vector(sum_v, size)


def _bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, scale: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return image(x, *x.shape[1:])


def _update_running_stats(*args: object) -> None:
    return None


OPERATIONS = (
    # x [N, C, H, W] -> mean, biased var [C].
    Operation("channel_stats", "(Tensor x) -> (Tensor mean, Tensor var)", _channel_stats),
    # With v the gradient at a BatchNorm's output, sum_v = sum(v) and sum_vx = sum(v * (x - mean)), both [C]:
    #   dgamma = sum_vx * rstd,  dbeta = sum_v,  scale = gamma * rstd,  dx = scale * v - a - b * (x - mean),
    #   where a += scale * dbeta / count and b += scale * rstd * dgamma / count if the norm used batch statistics.
    # a and b [C] are added to, because layers that normalise the same channel share one correction.
    Operation(
        "bn_bwd_finalize",
        "(Tensor sum_v, Tensor sum_vx, Tensor var, Tensor? gamma, float eps, int count, bool batch_stats,"
        " Tensor(a!) a, Tensor(b!) b) -> (Tensor dgamma, Tensor dbeta, Tensor scale)",
        _bn_bwd_finalize,
    ),
    # scale * v - a - b * (x - mean), a new dense NHWC tensor; without scale, v - a - b * (x - mean).
    Operation(
        "bn_bwd_apply",
        "(Tensor v, Tensor x, Tensor mean, Tensor? scale, Tensor a, Tensor b) -> Tensor",
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
