"""What Winograd's transforms would save of a 3x3 convolution's products, and what they cost in exactness.

`python -m benchmarks.winograd` prints for tiles of 2x2, 3x3 and 4x4 outputs (Lavin and Gray 2016) the products of an
output and the error of float32 against float64, beside the direct convolution's, from 128 activated channels to 32. The
error depends on the points at which the transforms' polynomials are taken (Barabasz et al. 2020): the usual ones stand
beside those with the least error that are short in binary. The CPU kernels use the first tile, and the third with sums
of 32 channels: an error of at most twice stock's is promised, and stock's differs from processor to processor.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from .table import Table

# The finite points; infinity is one more.
POINTS = [
    ("0", "1", "-1"),
    ("0", "1", "-1", "2"),
    ("3/8", "-3/8", "5/4", "-5/4"),
    ("0", "1", "-1", "2", "-2"),
    ("0", "5/8", "-5/8", "3/2", "-3/2"),
]


def transforms(points: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """B^T [n, n] of the input's tile, G [n, 3] of the filter and A^T [n - 2, n] of the products, in float64, for n - 1
    finite points."""
    finite = [float(Fraction(point)) for point in points]
    n = len(finite) + 1
    b, g, a = np.zeros((n, n)), np.zeros((n, 3)), np.zeros((n - 2, n))
    for i, point in enumerate(finite):
        others = [other for other in finite if other != point]
        b[i, :-1] = np.poly(others)[::-1]
        g[i] = [point**k / np.prod([point - other for other in others]) for k in range(3)]
        a[:, i] = [point**k for k in range(n - 2)]
    b[-1] = np.poly(finite)[::-1]
    g[-1, -1] = a[-1, -1] = 1
    return torch.from_numpy(b), torch.from_numpy(g), torch.from_numpy(a)


def convolve(x: Tensor, weight: Tensor, points: Sequence[str], channels: int) -> Tensor:
    """Tiles x [T, C, n, n] convolved with weight [K, C, 3, 3], by Winograd: [T, K, n - 2, n - 2]. Products are added up
    `channels` at a time, and then these sums."""
    b, g, a = transforms(points)
    filters = (g @ weight.double() @ g.T).to(x.dtype).split(channels, dim=1)
    inputs = (b.to(x.dtype) @ x @ b.T.to(x.dtype)).split(channels, dim=1)
    products = sum(torch.einsum("tcij,kcij->tkij", *pair) for pair in zip(inputs, filters, strict=True))
    return a.to(x.dtype) @ products @ a.T.to(x.dtype)


def main() -> None:
    rows: list[Sequence[str]] = []
    for points in POINTS:
        n = len(points) + 1
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(256, 128, n, n, generator=generator).relu_()
        weight = torch.randn(32, 128, 3, 3, generator=generator) * (2 / (128 * 9)) ** 0.5
        exact = torch.conv2d(x.double(), weight.double())
        direct = torch.conv2d(x, weight).double() - exact
        tile, products = f"{n - 2}x{n - 2}", n**2 / (n - 2) ** 2
        row = [tile, " ".join(points), f"{products:.2f}"]
        for channels in (128, 32):
            ours = convolve(x, weight, points, channels).double() - exact
            rms = ours.square().mean().sqrt() / direct.square().mean().sqrt()
            row += [f"{rms:.1f}", f"{ours.abs().max() / direct.abs().max():.1f}"]
        rows.append(row)
    header = (
        "tile",
        "points",
        "products of an output (direct: 9)",
        "rms error (direct: 1)",
        "greatest",
        "rms, 32 channels a sum",
        "greatest",
    )
    print(Table(header, rows).text())


if __name__ == "__main__":
    main()
