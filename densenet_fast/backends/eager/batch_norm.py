"""Eager twin of ops/batch_norm.py."""

import torch
from torch import Tensor

from ...ops._operation import accumulator
from ._common import bn_scale, folded, image, nhwc, rows


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


def stats_if(wanted: bool, x: Tensor) -> tuple[Tensor, Tensor]:
    """Channel statistics of x, or two empty vectors."""
    if wanted:
        return channel_stats(x)
    empty = accumulator(x.dtype)
    return x.new_empty(0, dtype=empty), x.new_empty(0, dtype=empty)


def bn_bwd_finalize(
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
    rstd = torch.rsqrt(var + eps)
    scale = bn_scale(var, gamma, eps)
    dgamma = sum_vx * rstd
    if batch_stats:
        a.addcmul_(scale, sum_v, value=1 / count)
        b.addcmul_(scale * rstd, dgamma, value=1 / count)
    return dgamma, sum_v.clone(), scale


def bn_bwd_apply(v: Tensor, x: Tensor, mean: Tensor, scale: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    dx = rows(v).to(mean.dtype, copy=True) if scale is None else rows(v) * scale
    return image(_correct_(dx, x, mean, a, b).to(x.dtype), like=x)


def bn_bwd_apply_(v: Tensor, x: Tensor, mean: Tensor, scale: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`bn_bwd_apply` in v's memory where v has the accumulator dtype."""
    if v.dtype != mean.dtype:
        return bn_bwd_apply(v, x, mean, scale, a, b)
    _correct_(rows(v).mul_(scale), x, mean, a, b)
    return v


def _correct_(dx: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor) -> Tensor:
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
    dtype = [running.dtype for running in running_mean]
    keep = [1 - m for m in momentum]
    unbiased = [m * n / (n - 1) for m, n in zip(momentum, count, strict=True)]
    new_mean = torch._foreach_mul(mean, momentum)
    new_var = torch._foreach_mul(var, unbiased)
    torch._foreach_mul_(running_mean, keep)
    torch._foreach_mul_(running_var, keep)
    torch._foreach_add_(running_mean, [m.to(d) for m, d in zip(new_mean, dtype, strict=True)])
    torch._foreach_add_(running_var, [v.to(d) for v, d in zip(new_var, dtype, strict=True)])
