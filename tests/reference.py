"""The operations of the contract as PyTorch's own layers and autograd compute them: in float64 the truth, in another
dtype the error that stock PyTorch makes in it. Statistics are constants to autograd: gradients are those before their
correction, which follows by the formula of contract/operations.py. test_blocks.py holds all this to training norms."""

from itertools import islice
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_fast.contract import Block, Half, Norm
from densenet_fast.contract.block import Layer


def stats_of(x: Tensor) -> Tensor:
    """Mean and biased variance [2, C] of x [N, C, H, W]."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return torch.stack([mean, var])


def dropout_mask(like: Tensor, drop_rate: float, seed: Tensor) -> Tensor:
    """Multipliers 0 or 1 / (1 - p) for [N, G, H, W], whose elements are counted in NHWC order from 1."""
    n, g, h, w = like.shape
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(int(seed) % 2**64) + numpy.arange(1, like.numel() + 1, dtype=numpy.uint64) * numpy.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ z >> numpy.uint64(30)) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> numpy.uint64(27)) * numpy.uint64(0x94D049BB133111EB)
        z ^= z >> numpy.uint64(31)
    kept = torch.from_numpy(z >> numpy.uint64(40) >= numpy.uint64(round(drop_rate * 2**24)))
    multipliers = kept.to(like.dtype) / (1 - drop_rate if drop_rate < 1 else 1)
    return multipliers.view(n, h, w, g).permute(0, 3, 1, 2)


def normalised(x: Tensor, norm: Norm) -> Tensor:
    """F.batch_norm, which refuses eps 0."""
    return torch.batch_norm(x, norm.gamma, norm.beta, norm.mean, norm.var, False, 0.0, norm.eps, False)


def corrected(v: Tensor, x: Tensor, mean: Tensor, correction: Tensor) -> Tensor:
    a, b, mean = (t.to(v.dtype).view(1, -1, 1, 1) for t in (*correction, mean))
    return v - a - b * (x - mean)


def norm_bwd(v: Tensor, x: Tensor, norm: Norm, dgamma: Tensor | None, dbeta: Tensor | None, correction: Any) -> Tensor:
    """dx before its correction, of v, the gradient at the norm's output."""
    ones = torch.ones_like(norm.var)
    gamma, beta = ones if norm.gamma is None else norm.gamma, 0 * ones if norm.beta is None else norm.beta
    with torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in (x, gamma, beta)]
        y = normalised(leaves[0], norm._replace(gamma=leaves[1], beta=leaves[2]))
        dx, of_gamma, of_beta = torch.autograd.grad(y, leaves, v)
    for to, gradient in ((dgamma, of_gamma), (dbeta, of_beta)):
        if to is not None:
            to.copy_(gradient)
    if correction is not None:
        share = gamma / (x.numel() // x.shape[1])
        rstd = (norm.var + norm.eps).rsqrt()
        correction[0] += share * rstd * of_beta
        correction[1] += share * rstd * rstd * of_gamma
    return dx


def conv(x: Tensor, norm: Norm, weight: Tensor) -> Tensor:
    return F.conv2d(F.relu(normalised(x, norm)), weight, padding=weight.shape[2] // 2)


def conv_bwd(dy: Tensor, x: Tensor, norm: Norm, weight: Tensor, dweight: Tensor | None) -> Tensor:
    """v, the gradient at the norm's output, of dy [N, G, H, W]."""
    with torch.enable_grad():
        h, w = normalised(x, norm).detach().requires_grad_(), weight.detach().requires_grad_()
        v, of_weight = torch.autograd.grad(F.conv2d(F.relu(h), w, padding=weight.shape[2] // 2), (h, w), dy)
    if dweight is not None:
        dweight.copy_(of_weight)
    return v


class Run:
    """A layer in the memory of its block."""

    def __init__(self, layer: Layer, x: Tensor, stats: Tensor, z: Tensor | None):
        n, _, h, w = x.shape
        self.layer, self.stats_z = layer, stats[:, layer.of_z]
        self.x, self.y = x[:, : layer.begin], x[:, layer.begin : layer.end]
        if z is None:
            self.z = x.new_empty(n, layer.width, h, w)
        else:
            self.z = z[layer.z].view(n, h, w, layer.width).permute(0, 3, 1, 2)
        self.norm1 = layer.norm1.on(stats[:, : layer.begin])

    def first_fwd(self, taken: bool = True) -> None:
        self.z.copy_(conv(self.x.contiguous(), self.norm1, self.layer.weight1))
        if taken and self.layer.norm2.uses_batch:
            self.stats_z.copy_(stats_of(self.z))

    def of_second(self) -> tuple[Tensor, Norm, Tensor]:
        """What the second half reads, its norm and weight."""
        if self.layer.weight2 is None:
            return self.x.contiguous(), self.norm1, self.layer.weight1
        return self.z.contiguous(), self.layer.norm2.on(self.stats_z), self.layer.weight2

    def mask(self) -> Tensor | float:
        layer = self.layer
        return 1.0 if layer.seed is None else dropout_mask(self.y, layer.drop_rate, layer.seed)


def runs(x: Tensor, stats: Tensor, z: Tensor | None, block: Block, begin: int, end: int) -> list[Run]:
    n, total, h, w = x.shape
    return [Run(layer, x, stats, z) for layer in islice(block.layers(total, n * h * w), begin, end)]


@torch.no_grad()
def block_fwd(x, stats, z, block, tracked, begin, end, halves) -> None:
    for run in runs(x, stats, z, block, begin, end):
        layer = run.layer
        if halves & Half.FIRST and layer.weight2 is not None:
            run.first_fwd()
        if halves & Half.SECOND:
            run.y.copy_(conv(*run.of_second()) * run.mask())
            if tracked:
                stats[:, layer.begin : layer.end] = stats_of(run.y)


@torch.no_grad()
def block_bwd(g, correction, x, stats, z, block, gradients, u, begin, end, halves) -> None:
    for run in reversed(runs(x, stats, z, block, begin, end)):
        layer = run.layer
        dgamma1, dbeta1, dweight1, _, _, dgamma2, dbeta2, dweight2 = gradients[10 * layer.number :][2:10]
        of_x = correction[:, : layer.begin] if layer.norm1.uses_batch else None
        of_z = correction[:, layer.of_z] if layer.norm2.uses_batch else None
        of_layer = u
        if z is None and layer.weight2 is not None:
            run.first_fwd(taken=False)
        if halves & Half.SECOND:
            place = slice(layer.begin, layer.end)
            dy = corrected(g[:, place], run.y, stats[0, place], correction[:, place]) * run.mask()
            read, norm, weight = run.of_second()
            v = conv_bwd(dy.contiguous(), read, norm, weight, dweight1 if layer.weight2 is None else dweight2)
            if layer.weight2 is None:
                g[:, : layer.begin] += norm_bwd(v, read, norm, dgamma1, dbeta1, of_x)
            else:
                norm_bwd(v, read, norm, dgamma2, dbeta2, of_z)
                of_layer = v if u is None else u.copy_(v)
        if halves & Half.FIRST and layer.weight2 is not None:
            read, norm, _ = run.of_second()
            scale = (1.0 if norm.gamma is None else norm.gamma) * (norm.var + norm.eps).rsqrt()
            scaled = of_layer * scale.to(x.dtype).view(1, -1, 1, 1)
            dz = corrected(scaled, read, norm.mean, correction[:, layer.of_z])
            v = conv_bwd(dz.contiguous(), run.x.contiguous(), run.norm1, layer.weight1, dweight1)
            g[:, : layer.begin] += norm_bwd(v, run.x.contiguous(), run.norm1, dgamma1, dbeta1, of_x)


def channel_stats(x, stats) -> None:
    stats.copy_(stats_of(x))


def bn_bwd_apply(v, x, mean, correction, dx) -> None:
    dx.copy_(corrected(v, x, mean, correction))


def update_running_stats(running_mean, running_var, num_batches_tracked, stats, begins, count, momentum) -> None:
    for counter in num_batches_tracked:
        counter.add_(1)
    for mean, var, begin, share in zip(running_mean, running_var, begins, momentum, strict=True):
        batch = stats[:, begin : begin + mean.numel()].double()
        mean.copy_(mean + share * (batch[0] - mean))
        var.copy_(var + share * (batch[1] * count / (count - 1) - var))


def _transition(h: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.avg_pool2d(F.relu(h), 2), weight)


def _stem(h: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(h), 3, 2, 1)


def _head(h: Tensor) -> Tensor:
    return F.relu(h).mean((2, 3))


def _fwd(y: Tensor, of: Tensor, stats: Tensor | None) -> None:
    y.copy_(of)
    if stats is not None:
        stats.copy_(stats_of(y))


def _bwd(function, dy, x, norm, dx, dnorm, *weights) -> list[Tensor]:
    """Those of the weights."""
    x = x.contiguous()
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (normalised(x, norm), *weights)]
        v, *of_weights = torch.autograd.grad(function(*leaves), leaves, dy.contiguous())
    dx.copy_(norm_bwd(v, x, norm, *dnorm))
    return of_weights


@torch.no_grad()
def transition_fwd(x, norm, weight, y, stats) -> None:
    _fwd(y, _transition(normalised(x.contiguous(), norm), weight), stats)


@torch.no_grad()
def transition_bwd(dy, x, norm, weight, dx, dnorm, dweight) -> None:
    (of_weight,) = _bwd(_transition, dy, x, norm, dx, dnorm, weight)
    if dweight is not None:
        dweight.copy_(of_weight)


@torch.no_grad()
def stem_fwd(x, norm, y, stats) -> None:
    _fwd(y, _stem(normalised(x.contiguous(), norm)), stats)


@torch.no_grad()
def stem_bwd(dy, x, norm, dx, dnorm) -> None:
    _bwd(_stem, dy, x, norm, dx, dnorm)


@torch.no_grad()
def head_fwd(x, norm, y) -> None:
    _fwd(y, _head(normalised(x.contiguous(), norm)), None)


@torch.no_grad()
def head_bwd(dy, x, norm, dx, dnorm) -> None:
    _bwd(_head, dy, x, norm, dx, dnorm)
