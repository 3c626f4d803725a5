"""What Winograd's transforms would save of a 3x3 convolution's products, and what they cost in exactness.

`python -m benchmarks.winograd` prints for tiles of 2x2 and 4x4 outputs (Lavin and Gray 2016) the products of an output
and the error of float32 against float64, beside the direct convolution's, from 128 activated channels to 32. The CPU
kernels use 2x2: an error of at most twice stock's is promised.
"""

import torch
from torch import Tensor

from .table import Table

# Of F(2x2, 3x3) and F(4x4, 3x3): B^T of the input's tile, G of the filter, A^T of the products.
TRANSFORMS = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


def convolve(x: Tensor, weight: Tensor, size: int) -> Tensor:
    """Tiles x [T, C, size + 2, size + 2] convolved with weight [K, C, 3, 3], by Winograd: [T, K, size, size]."""
    b, g, a = (x.new_tensor(matrix) for matrix in TRANSFORMS[size])
    products = torch.einsum("tcij,kcij->tkij", b @ x @ b.T, g @ weight @ g.T)
    return a @ products @ a.T


def main() -> None:
    rows = []
    for size in TRANSFORMS:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(256, 128, size + 2, size + 2, generator=generator).relu_()
        weight = torch.randn(32, 128, 3, 3, generator=generator) * (2 / (128 * 9)) ** 0.5
        exact = torch.conv2d(x.double(), weight.double())
        direct, ours = (found.double() - exact for found in (torch.conv2d(x, weight), convolve(x, weight, size)))
        rms = ours.square().mean().sqrt(), direct.square().mean().sqrt()
        greatest = ours.abs().max() / direct.abs().max()
        products = (size + 2) ** 2 / size**2
        rows.append((f"{size}x{size}", f"{products:.2f}", f"{rms[0] / rms[1]:.1f}", f"{greatest:.1f}"))
    header = ("tile", "products of an output (direct: 9)", "rms error (direct: 1)", "greatest error (direct: 1)")
    print(Table(header, rows).text())


if __name__ == "__main__":
    main()
