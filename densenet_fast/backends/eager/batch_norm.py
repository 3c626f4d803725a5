"""Statistics, the deferred correction, running averages."""

import torch
from torch import Tensor

from ...contract import accumulator
from ._common import folded, nhwc, rows


def channel_stats(x: Tensor, stats: Tensor) -> None:
    x = x.to(accumulator(x.dtype))
    if not x.is_cpu:
        var, mean = torch.var_mean(rows(x), 0, correction=0)
    else:  # var_mean is not vectorised on the CPU, 20 times slower than BatchNorm's own statistics.
        wide, r = folded(nhwc(x))
        means, variances = (s.view(r, -1) for s in torch.batch_norm_update_stats(wide, None, None, 0.0))
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
    stats[0].copy_(mean)
    stats[1].copy_(var)


def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, dx: Tensor) -> None:
    if dx.dtype == mean.dtype:
        corrected_(rows(dx).copy_(rows(v)), x, mean, correction)
    else:
        rows(dx).copy_(corrected_(rows(v).to(mean.dtype), x, mean, correction))


def corrected_(dx: Tensor, x: Tensor, mean: Tensor, correction: Tensor) -> Tensor:
    """dx - a - b * (x - mean) for rows dx, in place."""
    a, b = correction
    return dx.addcmul_(rows(x), b, value=-1).add_(torch.addcmul(-a, b, mean))


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
