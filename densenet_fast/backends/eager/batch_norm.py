"""Eager twin of ops/batch_norm.py."""

import torch
from torch import Tensor

from ...ops._operation import accumulator
from ._common import folded, image, nhwc, rows


def channel_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.to(accumulator(x.dtype))
    if not x.is_cpu:
        var, mean = torch.var_mean(rows(x), 0, correction=0)
        return mean, var
    # var_mean is not vectorised on the CPU, 20 times slower than BatchNorm's own statistics.
    wide, r = folded(nhwc(x))
    means, variances = (s.view(r, -1) for s in torch.batch_norm_update_stats(wide, None, None, 0.0))
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def stats_into(mean: Tensor | None, var: Tensor | None, x: Tensor) -> None:
    """Channel statistics of x, written to mean and var if they are given."""
    if mean is not None and var is not None:
        batch_mean, batch_var = channel_stats(x)
        mean.copy_(batch_mean)
        var.copy_(batch_var)


def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return image(correct_(rows(v).to(mean.dtype, copy=True), x, mean, a, b).to(x.dtype), like=x)


def correct_(dx: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """dx - a - b * (x - mean) for rows dx, in place."""
    return dx.addcmul_(rows(x), b, value=-1).add_(torch.addcmul(-a, b, mean))


def update_running_stats(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    mean: list[Tensor],
    var: list[Tensor],
    count: list[int],
    momentum: list[float],
) -> None:
    # Without a new version, as PyTorch's BatchNorm writes them: plain layers have saved them, but do not read them.
    running_mean, running_var = ([running.data for running in each] for each in (running_mean, running_var))
    dtype = [running.dtype for running in running_mean]
    keep = [1 - m for m in momentum]
    unbiased = [m * n / (n - 1) for m, n in zip(momentum, count, strict=True)]
    new_mean = torch._foreach_mul(mean, momentum)
    new_var = torch._foreach_mul(var, unbiased)
    torch._foreach_mul_(running_mean, keep)
    torch._foreach_mul_(running_var, keep)
    torch._foreach_add_(running_mean, [m.to(d) for m, d in zip(new_mean, dtype, strict=True)])
    torch._foreach_add_(running_var, [v.to(d) for v, d in zip(new_var, dtype, strict=True)])
