"""What the eager operations share: the row view of an NHWC tensor, BN-ReLU, and the masked sums of its backward.

Beyond the contract, the eager operations also take images of one dimension, [N, C, L], and of three, [N, C, D, H, W],
with weights to fit, channels innermost in memory as in NHWC, dilated convolutions, and transitions that do not pool
(`stage/mixed.py`).
"""

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


def bn_scale(norm: Norm) -> Tensor:
    """gamma / sqrt(var + eps), [C]."""
    rstd = torch.rsqrt(norm.var + norm.eps)
    return rstd if norm.gamma is None else rstd * norm.gamma


def bn_affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """scale, shift [C] with bn(x) = scale * x + shift."""
    scale = bn_scale(norm)
    shift = -norm.mean * scale
    return scale, shift if norm.beta is None else shift + norm.beta


def bn_relu(x: Tensor, norm: Norm) -> Tensor:
    """relu(bn(x)) of `[N, C, H, W]`, as a new dense NHWC tensor."""
    scale, shift = bn_affine(norm)
    return image(torch.addcmul(shift, rows(x), scale).to(x.dtype).relu_(), like=x)


def relu_bwd_(grad: Tensor, activated: Tensor) -> Tensor:
    """grad * (activated > 0) in grad's place; `activated` is the ReLU's output."""
    return torch.ops.aten.threshold_backward.grad_input(grad, activated, 0, grad_input=grad)


def pieces(x: Tensor) -> list[slice]:
    """The batch in at most four parts of at least 2 MB, for elementwise passes that need whole-tensor transients."""
    n = x.shape[0]
    image_bytes = x[0].numel() * x.element_size()
    size = max(-(-n // 4), -(-(2 << 20) // image_bytes))
    return [slice(i, i + size) for i in range(0, n, size)]


def folded(x: Tensor) -> tuple[Tensor, int]:
    """Dense NHWC `[N, C, H, W]` as `[1, R * C, M / R, 1]`, and R: R interleaved sums, merged later, for each channel.

    PyTorch's channels_last reductions on the CPU run down the rows in one float32 sum for each thread, whose error
    grows with its length; R sums of M / R rows cost the same and lose less.
    """
    m, c = x.numel() // x.shape[1], x.shape[1]
    r = next(d for d in range(max(1, min(64, 8192 // c, m)), 0, -1) if m % d == 0)
    return rows(x).view(1, m // r, 1, r * c).permute(0, 3, 1, 2), r


class NormSums:
    """Of v at a norm's output: sum(v) and sum(v * (x - mean)) over the pieces added."""

    def __init__(self, norm: Norm):
        self._norm = norm
        self._v, self._vx = torch.zeros_like(norm.mean), torch.zeros_like(norm.mean)

    def add(self, v: Tensor, x: Tensor, scratch: Tensor) -> None:
        """Add a piece of dense v and its x; `scratch`, a dense tensor like v, is overwritten."""
        mean = self._norm.mean
        if v.dtype != mean.dtype:
            v = v.to(mean.dtype)
            scratch = torch.empty_like(v)
        torch.sub(rows(x), mean, out=rows(scratch))
        # BatchNorm's own reduction, of x - mean with mean 0 and deviation 1: it reads both inputs once.
        (wide_v, r), (wide_x, _) = folded(v), folded(scratch)
        zero, one = mean.new_zeros((wide_v.shape[1],)), mean.new_ones((wide_v.shape[1],))
        _, vx, total = torch.ops.aten.native_batch_norm_backward(
            wide_v, wide_x, one, None, None, zero, one, True, 0.0, [False, True, True]
        )
        self._v += total.view(r, -1).sum(0)
        self._vx += vx.view(r, -1).sum(0)

    def write(self, gradient: NormGradient, count: int) -> None:
        """The norm's own gradient, from the sums over `count` values for each channel, and its correction."""
        scale, rstd = bn_scale(self._norm), torch.rsqrt(self._norm.var + self._norm.eps)
        dgamma, dbeta = self._vx * rstd, self._v
        gradient.dgamma.copy_(dgamma)
        gradient.dbeta.copy_(dbeta)
        if gradient.correction is not None:
            a, b = gradient.correction
            a.addcmul_(scale, dbeta, value=1 / count)
            b.addcmul_(scale * rstd, dgamma, value=1 / count)


def bn_relu_bwd(v: Tensor, x: Tensor, norm: Norm, dx: Tensor | None, gradient: NormGradient) -> None:
    """From v, the gradient behind the ReLU, in place the gradient before it; dx += gamma * rstd * v."""
    scale, sums = bn_scale(norm), NormSums(norm)
    for i in pieces(x):
        activated = bn_relu(x[i], norm)
        relu_bwd_(v[i], activated)
        sums.add(v[i], x[i], scratch=activated)
        if dx is not None:
            rows(dx[i]).addcmul_(rows(v[i]), scale)
    sums.write(gradient, pixels(x))


def conv_dgrad(dy: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Input gradient of `conv`: the convolution with the kernel turned round and its channels exchanged."""
    return conv(dy, weight.flip(*range(2, weight.dim())).transpose(0, 1), dilation=dilation)


def conv_wgrad(dy: Tensor, x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Weight gradient of `conv`; of weight only the shape matters."""
    padding = weight.shape[-1] // 2 * dilation
    pad, apart, one, zero = ([value] * (weight.dim() - 2) for value in (padding, dilation, 1, 0))
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, one, pad, apart, False, zero, 1, [False, True, False]
    )[1].contiguous()


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """Stride-1 convolution that keeps the image size (kernel 1x1 or 3x3), dense NHWC."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    return nhwc(convolve(x, weight, bias, padding=weight.shape[-1] // 2 * dilation, dilation=dilation))


def plane(x: Tensor) -> Tensor:
    """What poolings take: an image of one dimension as one row of two."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def window(x: Tensor, size: int, across: int) -> list[int]:
    """A pooling's number for each dimension of `plane(x)`: `across` for that which x has not."""
    return [across, size] if x.dim() == 3 else [size] * (x.dim() - 2)
