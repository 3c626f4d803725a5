"""What the eager operations share: the row view of an NHWC tensor, BN-ReLU, and the masked sums of its backward.

Beyond the contract, the eager operations also take images of one dimension, [N, C, L], and of three, [N, C, D, H, W],
with weights to fit, channels innermost in memory as in NHWC, dilated convolutions, and transitions that do not pool
(`stage/mixed.py`).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from ...contract import Norm, NormGradient


def rows(x: Tensor) -> Tensor:
    """The `[M, C]` view, M = N*H*W, of `[N, C, H, W]` in NHWC memory; an error where that would need a copy."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x.movedim(1, -1)).view(-1, x.shape[1])


class Images(NamedTuple):
    """What rows [M, C] do not say of the images that they are."""

    size: Sequence[int]  # H, W
    in_products: bool  # whether convolutions of them run as products of matrices

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """A CPU multiplies matrices sooner than it convolves, but not in 16 bits, and not where products of float32 may
        be less exact than convolutions (`torch.set_float32_matmul_precision`)."""
        precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
        exact = x.dtype == torch.float64 or (x.dtype == torch.float32 and precision in ("none", "ieee"))
        return cls(x.shape[2:], x.is_cpu and exact)


def image(x: Tensor, size: Sequence[int]) -> Tensor:
    """The `[N, C, H, W]` view of dense rows `[M, C]`; size: H, W."""
    x = x.view(-1, *size, x.shape[1])
    return x.permute(0, 3, 1, 2) if len(size) == 2 else x.movedim(-1, 1)


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
        self.mean = norm.mean
        self.rstd = torch.rsqrt(norm.var + norm.eps)
        self.scale = self.rstd if norm.gamma is None else self.rstd * norm.gamma
        if norm.beta is None:
            self.shift = torch.mul(self.mean, self.scale).neg_()
        else:
            self.shift = torch.addcmul(norm.beta, self.mean, self.scale, value=-1)

    def __call__(self, x: Tensor) -> Tensor:
        """bn(x) of rows `[M, C]`, dense."""
        return torch.addcmul(self.shift, x, self.scale).to(x.dtype)

    def relu(self, x: Tensor) -> Tensor:
        return self(x).relu_()


def relu_bwd_(grad: Tensor, x: Tensor) -> Tensor:
    """grad * (x > 0) in grad's place; x is the ReLU's input, or its output."""
    return torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)


def pieces(x: Tensor, size: Sequence[int] = ()) -> list[slice]:
    """Of images `[N, C, H, W]`, or of rows `[M, C]` of images of `size`: at most four parts of the batch of at least
    2 MB, for passes that need transients as large as what they read."""
    pixels = math.prod(size)
    n = x.shape[0] // pixels
    image_bytes = x.numel() // n * x.element_size()
    step = max(-(-n // 4), -(-(2 << 20) // image_bytes)) * pixels
    return [slice(i, i + step) for i in range(0, x.shape[0], step)] if step < x.shape[0] else [slice(None)]


def part(x: Tensor, i: slice) -> Tensor:
    """x[i], at no cost where that is all of x."""
    return x if i.stop is None else x[i]


def folding(x: Tensor) -> int:
    """R, by which `folded` interleaves rows `[M, C]`: the sums of so many channels stay in the L1 cache."""
    m, c = x.shape
    return next(d for d in range(max(1, min(64, 2048 // c, m)), 0, -1) if m % d == 0)


def folded(x: Tensor, r: int) -> Tensor:
    """Dense rows `[M, C]` as an image `[1, R * C, M / R, 1]`: R interleaved sums, merged later, for each channel.

    PyTorch's channels_last reductions on the CPU run down the rows in one float32 sum for each thread, whose error
    grows with its length; R sums of M / R rows cost the same and lose less.
    """
    m, c = x.shape
    return x.as_strided((1, r * c, m // r, 1), (m * c, 1, r * c, r * c))


class NormSums:
    """Of v at a norm's output: sum(v) and sum(v * (x - mean)) * rstd, [C], over the pieces added."""

    def __init__(self, norm: Affine):
        self._norm = norm
        self._sums: list[Tensor] = []

    def add(self, v: Tensor, x: Tensor, scratch: Tensor) -> None:
        """Add dense rows of v, and their x; `scratch`, dense rows like v, may be overwritten."""
        r, x = folding(v), x if x.is_contiguous() else scratch.copy_(x)
        mean, rstd = (t if r == 1 else torch.cat([t] * r) for t in (self._norm.mean, self._norm.rstd))
        # BatchNorm's own reduction reads both inputs once.
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            folded(v, r), folded(x, r), None, None, None, mean, rstd, True, 0.0, [False, True, True]
        )
        found = [s if r == 1 else s.view(r, -1).sum(0) for s in sums]
        self._sums = [a.add_(b) for a, b in zip(self._sums, found, strict=True)] if self._sums else found

    def write(self, gradient: NormGradient, count: int) -> None:
        """The norm's own gradient, from the sums over `count` values for each channel, and its correction."""
        dgamma, dbeta = self._sums
        gradient.dgamma.copy_(dgamma)
        gradient.dbeta.copy_(dbeta)
        if gradient.correction is not None:
            a, b = gradient.correction.unbind()
            a.addcmul_(self._norm.scale, dbeta, value=1 / count)
            b.addcmul_(self._norm.scale * self._norm.rstd, dgamma, value=1 / count)


def bn_relu_bwd(
    x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient, gradient: Callable[[slice, Tensor], Tensor]
) -> None:
    """dx = gamma * rstd * v and the norm's gradient, images piece by piece. `gradient`: that of relu(bn(x)), as dense
    rows, of the images of a piece and relu(bn(x)) there; it may be overwritten."""
    bn = Affine(norm)
    sums = NormSums(bn)
    for i in pieces(x):
        activated = bn.relu(rows(x[i]))
        v = relu_bwd_(gradient(i, activated), activated)
        torch.mul(v, bn.scale, out=rows(dx[i]))
        sums.add(v, rows(x[i]), scratch=activated)
    sums.write(dnorm, pixels(x))


def conv(x: Tensor, weight: Tensor, images: Images, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """Of dense rows: the stride-1 convolution that keeps the images' size (kernel 1x1 or 3x3), as dense rows."""
    if weight.shape[-1] == 1 and images.in_products:
        transposed = weight.flatten(1).t()
        return torch.mm(x, transposed) if bias is None else torch.addmm(bias, x, transposed)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(images.size) - 1]
    y = convolve(image(x, images.size), weight, bias, padding=weight.shape[-1] // 2 * dilation, dilation=dilation)
    return rows(nhwc(y))


def conv_dgrad(dy: Tensor, weight: Tensor, images: Images, dilation: int = 1) -> Tensor:
    """Input gradient of `conv`: the convolution with the kernel turned round and its channels exchanged."""
    turned = weight if weight.shape[-1] == 1 else weight.flip(*range(2, weight.dim()))
    return conv(dy, turned.transpose(0, 1), images, dilation=dilation)


def conv_wgrad(dy: Tensor, x: Tensor, weight: Tensor, images: Images, dilation: int = 1) -> Tensor:
    """Weight gradient of `conv`, in any memory format; of weight only the shape matters."""
    size = images.size
    if images.in_products and weight.shape[-1] == 1:
        return torch.mm(dy.t(), x).view(weight.shape)
    if images.in_products:
        # A product with what surrounds each pixel of dy, whose channels are few: a third sooner than a convolution.
        padded, transposed = F.pad(dy.view(-1, *size, dy.shape[1]), (0, 0, *(2 * len(size)) * (dilation,))), x.t()
        by_row = x.new_empty((3, x.shape[1], weight[:, 0, 0].numel()))
        for i, of_row in enumerate(by_row):
            torch.mm(transposed, _taps(padded, size, dilation, i), out=of_row)
        by_taps = by_row.view(3, x.shape[1], *weight.shape[3:], -1).flip(0, *range(2, 1 + len(size)))
        return by_taps.movedim((-1, 1), (0, 1))
    padding = weight.shape[-1] // 2 * dilation
    pad, apart, one, zero = ([value] * (weight.dim() - 2) for value in (padding, dilation, 1, 0))
    return torch.ops.aten.convolution_backward(
        image(dy, size), image(x, size), weight, None, one, pad, apart, False, zero, 1, [False, True, False]
    )[1]


def _taps(padded: Tensor, size: Sequence[int], dilation: int, first: int) -> Tensor:
    """Of each pixel those values in the 3x3 around it that are in its row number `first`: rows [M, 3 * C]. (Of a signal
    [M, C], of a volume [M, 9 * C].) padded: [N, H, W, C] with zeros around each image of `size`."""
    n, *_, c = padded.shape
    inner, strides = len(size) - 1, padded.stride()
    apart = [dilation * stride for stride in strides[2:-1]]
    begin = first * dilation * strides[1]
    taps = padded.as_strided((n, *size, *inner * (3,), c), (*strides[:-1], *apart, 1), begin)
    return taps.reshape(-1, 3**inner * c)


def plane(x: Tensor) -> Tensor:
    """What poolings take: an image of one dimension as one row of two."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def window(x: Tensor, size: int, across: int) -> list[int]:
    """A pooling's number for each dimension of `plane(x)`: `across` for that which x has not."""
    return [across, size] if x.dim() == 3 else [size] * (x.dim() - 2)
