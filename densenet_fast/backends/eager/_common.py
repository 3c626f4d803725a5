"""What the eager operations share: the row view of an NHWC tensor, BN-ReLU, and the masked sums of its backward.

Beyond the contract, the eager operations also take images of one dimension, [N, C, L], and of three, [N, C, D, H, W],
with weights to fit, channels innermost in memory as in NHWC, dilated convolutions, and transitions that do not pool
(`stage/mixed.py`).
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ...contract import Norm, NormGradient


def rows(x: Tensor) -> Tensor:
    """The `[M, C]` view, M = N*H*W, of `[N, C, H, W]` in NHWC memory; an error where that would need a copy."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x.movedim(1, -1)).view(-1, x.shape[1])


def image(x: Tensor, like: Tensor) -> Tensor:
    """The `[N, C, H, W]` view of rows `[M, C]`, with N, H, W of `like`."""
    n, _, *size = like.shape
    rows = x.view(n, *size, x.shape[1])
    return rows.permute(0, 3, 1, 2) if len(size) == 2 else rows.movedim(-1, 1)


def nhwc(x: Tensor) -> Tensor:
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def pixels(x: Tensor) -> int:
    """N * H * W of `[N, C, H, W]`."""
    return x.numel() // x.shape[1]


class Affine:
    """A norm as bn(x) = scale * x + shift, with vectors [C]: made once for all that a layer wants of it."""

    def __init__(self, norm: Norm):
        self.mean, self._beta = norm.mean, norm.beta
        self.rstd = torch.rsqrt(norm.var + norm.eps)
        self.scale = self.rstd if norm.gamma is None else self.rstd * norm.gamma

    @cached_property
    def shift(self) -> Tensor:
        if self._beta is None:
            return torch.mul(self.mean, self.scale).neg_()
        return torch.addcmul(self._beta, self.mean, self.scale, value=-1)

    def __call__(self, x: Tensor) -> Tensor:
        """bn(x) of `[N, C, H, W]`, as a new dense NHWC tensor."""
        return image(torch.addcmul(self.shift, rows(x), self.scale).to(x.dtype), like=x)

    def relu(self, x: Tensor) -> Tensor:
        return self(x).relu_()


def relu_bwd_(grad: Tensor, x: Tensor) -> Tensor:
    """grad * (x > 0) in grad's place; x is the ReLU's input, or its output."""
    return torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)


def pieces(x: Tensor) -> list[slice]:
    """The batch in at most four parts of at least 2 MB, for elementwise passes that need whole-tensor transients."""
    n = x.shape[0]
    image_bytes = x[0].numel() * x.element_size()
    size = max(-(-n // 4), -(-(2 << 20) // image_bytes))
    return [slice(i, i + size) for i in range(0, n, size)]


def folding(x: Tensor) -> int:
    """R, by which `folded` interleaves `[N, C, H, W]`."""
    m, c = pixels(x), x.shape[1]
    return next(d for d in range(max(1, min(64, 8192 // c, m)), 0, -1) if m % d == 0)


def folded(x: Tensor, r: int) -> Tensor:
    """Dense NHWC `[N, C, H, W]` as `[1, R * C, M / R, 1]`: R interleaved sums, merged later, for each channel.

    PyTorch's channels_last reductions on the CPU run down the rows in one float32 sum for each thread, whose error
    grows with its length; R sums of M / R rows cost the same and lose less.
    """
    return rows(x).view(1, -1, 1, r * x.shape[1]).permute(0, 3, 1, 2)


class NormSums:
    """Of v at a norm's output: sum(v) and sum(v * (x - mean)), [C], over the pieces added."""

    def __init__(self, affine: Affine):
        self._affine = affine
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, v: Tensor, x: Tensor, scratch: Tensor) -> None:
        """Add a piece of dense v and its x; `scratch`, a dense tensor like v, is overwritten."""
        mean = self._affine.mean
        if v.dtype != mean.dtype:
            v = v.to(mean.dtype)
            scratch = torch.empty_like(v)
        torch.sub(rows(x), mean, out=rows(scratch))
        # BatchNorm's own reduction, of x - mean with mean 0 and deviation 1: it reads both inputs once.
        r, c = folding(v), v.shape[1]
        zero, one = mean.new_zeros((r * c,)), mean.new_ones((r * c,))
        _, vx, total = torch.ops.aten.native_batch_norm_backward(
            folded(v, r), folded(scratch, r), one, None, None, zero, one, True, 0.0, [False, True, True]
        )
        found = total.view(r, c).sum(0), vx.view(r, c).sum(0)
        self._sums = found if self._sums is None else (self._sums[0] + found[0], self._sums[1] + found[1])

    def write(self, gradient: NormGradient, count: int) -> None:
        """The norm's own gradient, from the sums over `count` values for each channel, and its correction."""
        assert self._sums is not None
        scale, rstd, (dbeta, vx) = self._affine.scale, self._affine.rstd, self._sums
        dgamma = torch.mul(vx, rstd, out=gradient.dgamma)
        gradient.dbeta.copy_(dbeta)
        if gradient.correction is not None:
            a, b = gradient.correction
            a.addcmul_(scale, dbeta, value=1 / count)
            b.addcmul_(scale * rstd, dgamma, value=1 / count)


def bn_relu_bwd(
    v: Tensor, x: Tensor, bn: Affine, dx: Tensor | None, gradient: NormGradient, activated: Tensor | None = None
) -> None:
    """From v, the gradient behind the ReLU, in place the gradient before it; dx += gamma * rstd * v.

    activated: relu(bn(x)), overwritten; None has it made again in pieces.
    """
    sums = NormSums(bn)
    for i in pieces(x):
        normalised = bn(x[i]) if activated is None else activated[i]
        relu_bwd_(v[i], normalised)
        sums.add(v[i], x[i], scratch=normalised)
        if dx is not None:
            rows(dx[i]).addcmul_(rows(v[i]), bn.scale)
    sums.write(gradient, pixels(x))


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1, out: Tensor | None = None) -> Tensor:
    """Stride-1 convolution that keeps the image size (kernel 1x1 or 3x3), dense NHWC; in `out` if it is given."""
    if _is_product(x, weight):
        transposed, to = weight.flatten(1).t(), None if out is None else rows(out)
        y = torch.mm(rows(x), transposed, out=to) if bias is None else torch.addmm(bias, rows(x), transposed, out=to)
        return image(y, like=x)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    y = convolve(x, weight, bias, padding=weight.shape[-1] // 2 * dilation, dilation=dilation)
    return nhwc(y) if out is None else out.copy_(y)


def conv_dgrad(dy: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Input gradient of `conv`: the convolution with the kernel turned round and its channels exchanged."""
    turned = weight if weight.shape[-1] == 1 else weight.flip(*range(2, weight.dim()))
    return conv(dy, turned.transpose(0, 1), dilation=dilation)


def conv_wgrad(dy: Tensor, x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Weight gradient of `conv`, in any memory format; of weight only the shape matters."""
    if _is_product(x, weight):
        return torch.mm(rows(dy).t(), rows(x)).view(weight.shape)
    padding = weight.shape[-1] // 2 * dilation
    pad, apart, one, zero = ([value] * (weight.dim() - 2) for value in (padding, dilation, 1, 0))
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, one, pad, apart, False, zero, 1, [False, True, False]
    )[1]


def _is_product(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution runs as a product of matrices: a CPU does that sooner, but not in 16 bits, and not where
    products of float32 may be less exact than convolutions (`torch.set_float32_matmul_precision`)."""
    if weight.shape[-1] != 1 or not x.is_cpu:
        return False
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return x.dtype == torch.float64 or (x.dtype == torch.float32 and precision in ("none", "ieee"))


def plane(x: Tensor) -> Tensor:
    """What poolings take: an image of one dimension as one row of two."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def window(x: Tensor, size: int, across: int) -> list[int]:
    """A pooling's number for each dimension of `plane(x)`: `across` for that which x has not."""
    return [across, size] if x.dim() == 3 else [size] * (x.dim() - 2)
