"""Statistics, the deferred correction, running averages."""

import torch
from torch import Tensor

from ...contract import accumulator
from ._common import folded, folding, rows


def channel_stats(x: Tensor, stats: Tensor) -> None:
    row_stats(rows(x), stats)


def row_stats(x: Tensor, stats: Tensor) -> None:
    """`channel_stats` of rows [M, C]."""
    x = x.to(accumulator(x.dtype))
    mean, var = stats.unbind()
    if not x.is_cpu:
        for found, to in zip(torch.var_mean(x, 0, correction=0), (var, mean), strict=True):
            to.copy_(found)
        return
    # var_mean is not vectorised on the CPU, 20 times slower than BatchNorm's own statistics.
    x = x.contiguous()
    r = folding(x)
    means, variances = (s.view(r, -1) for s in torch.batch_norm_update_stats(folded(x, r), None, None, 0.0))
    torch.mean(means, 0, out=mean)
    apart = means.sub_(mean)
    torch.mean(variances.addcmul_(apart, apart), 0, out=var)


def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, dx: Tensor) -> None:
    if dx.dtype == mean.dtype:
        corrected(rows(v), rows(x), mean, correction, out=rows(dx))
    else:
        rows(dx).copy_(corrected(rows(v), rows(x), mean, correction))


def corrected(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, out: Tensor | None = None) -> Tensor:
    """v - a - b * (x - mean) of rows [M, C], in the accumulator dtype."""
    a, b = correction.unbind()
    at_zero = torch.addcmul(a, b, mean, value=-1)
    return torch.sub(v, at_zero, out=out).addcmul_(x, b, value=-1)


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
