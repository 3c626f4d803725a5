"""Statistics, the deferred correction, running averages."""

import torch
from torch import Tensor

from ...contract import accumulator
from ._common import folded, folding, nhwc, rows


def channel_stats(x: Tensor, stats: Tensor) -> None:
    x = x.to(accumulator(x.dtype))
    mean, var = stats.unbind()
    if not x.is_cpu:
        for found, to in zip(torch.var_mean(rows(x), 0, correction=0), (var, mean), strict=True):
            to.copy_(found)
        return
    # var_mean is not vectorised on the CPU, 20 times slower than BatchNorm's own statistics.
    x = nhwc(x)
    r = folding(x)
    means, variances = (s.view(r, -1) for s in torch.batch_norm_update_stats(folded(x, r), None, None, 0.0))
    torch.mean(means, 0, out=mean)
    apart = means - mean
    torch.mean(variances.addcmul_(apart, apart), 0, out=var)


def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, dx: Tensor) -> None:
    if dx.dtype == mean.dtype:
        torch.sub(rows(v), correction_at_zero(mean, correction), out=rows(dx)).addcmul_(
            rows(x), correction[1], value=-1
        )
    else:
        rows(dx).copy_(corrected(rows(v), x, mean, correction))


def corrected(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor) -> Tensor:
    """v - a - b * (x - mean) for rows v, in the accumulator dtype."""
    return (v - correction_at_zero(mean, correction)).addcmul_(rows(x), correction[1], value=-1)


def correction_at_zero(mean: Tensor, correction: Tensor) -> Tensor:
    """a - b * mean."""
    a, b = correction
    return torch.addcmul(a, b, mean, value=-1)


def update_running_stats(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    num_batches_tracked: list[Tensor],
    stats: Tensor,
    begins: list[int],
    count: int,
    momentum: list[float],
) -> None:
    # Without a new version, as PyTorch's BatchNorm writes them: plain layers have saved them, but do not read them.
    running_mean, running_var = ([running.data for running in each] for each in (running_mean, running_var))
    dtype = [running.dtype for running in running_mean]
    ends = [begin + running.shape[0] for begin, running in zip(begins, running_mean, strict=True)]
    mean, var = ([row[begin:end] for begin, end in zip(begins, ends, strict=True)] for row in stats)
    keep = [1 - m for m in momentum]
    unbiased = [m * count / (count - 1) for m in momentum]
    new_mean = torch._foreach_mul(mean, momentum)
    new_var = torch._foreach_mul(var, unbiased)
    torch._foreach_mul_(running_mean, keep)
    torch._foreach_mul_(running_var, keep)
    torch._foreach_add_(running_mean, [m.to(d) for m, d in zip(new_mean, dtype, strict=True)])
    torch._foreach_add_(running_var, [v.to(d) for v, d in zip(new_var, dtype, strict=True)])
    if num_batches_tracked:
        torch._foreach_add_(num_batches_tracked, 1)
