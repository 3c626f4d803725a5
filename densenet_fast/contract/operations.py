"""The operations: one declaration, from which schemas, calls, traffic and the C++ structures follow.

A method below is the PyTorch operator `densenet_fast::<method>.<backend>` of every backend, and in a backend's module
the function of that name and with these arguments. Records are spelled out in the schema, field by field.

Conventions:
- Activations are `[N, C, H, W]` tensors whose memory is NHWC: stride 1 along C, any row stride (channel slices of a
  dense block's buffer). Weights are PyTorch's, in the activations' dtype.
- Vectors and sums are in the accumulator dtype (float64 for float64, else float32). `stats` is a pair [2, C] of mean
  and biased variance, `correction` a pair [2, C] of a and b; the two rows may lie apart.
- An operation allocates no result: it writes where it is told to, and what is written shares no memory with any other
  argument, unless it may be that argument itself. What may be None is not wanted.
- A backward operation ends with its norm's own gradient (docs/internals/algorithm.md). With v the gradient at the
  norm's output, sum_v = sum(v), sum_vx = sum(v * (x - mean)), scale = gamma * rstd and count = N * H * W:
    dgamma = sum_vx * rstd,  dbeta = sum_v,  dx = scale * v - a - b * (x - mean),
  where a += scale * dbeta / count and b += scale * rstd * dgamma / count. They are added to, because layers that
  normalise the same channel share one correction.
- Same input, same machine, same thread count: the same bits.
"""

from typing import Protocol

from torch import Tensor

from .block import Block
from .records import Norm, NormGradient, Scratch, Updated, Written, WrittenOverV


class Operations(Protocol):
    def channel_stats(self, x: Tensor, stats: Written[Tensor], /) -> None:
        """Statistics [2, C] of x [N, C, H, W] (Ioffe and Szegedy 2015)."""

    def bn_bwd_apply(self, v: Tensor, x: Tensor, mean: Tensor, correction: Tensor, dx: WrittenOverV[Tensor], /) -> None:
        """dx = v - a - b * (x - mean), all [N, C, H, W] but mean [C] and correction [2, C]. dx may be v."""

    def update_running_stats(
        self,
        running_mean: Updated[list[Tensor]],
        running_var: Updated[list[Tensor]],
        num_batches_tracked: Updated[list[Tensor]],
        stats: Tensor,
        begins: list[int],
        count: int,
        momentum: list[float],
        /,
    ) -> None:
        """running += momentum * (batch - running) for the norms of a stage, in any floating dtype.

        Norm i took from the batch, over `count` values for each channel, the columns of stats [2, S] from begins[i] on.
        The variance that enters running_var is unbiased: var * count / (count - 1). Each running tensor appears once.
        num_batches_tracked: one int64 of each norm, to which 1 is added; or an empty list.
        """

    def block_fwd(
        self,
        x: Updated[Tensor],
        stats: Updated[Tensor],
        z: Written[Tensor | None],
        block: Block,
        tracked: bool,
        begin: int,
        end: int,
        halves: int,
        /,
    ) -> None:
        """The halves (block.Half) of the layers from `begin` to `end` of a dense block.

        x [N, C_total, H, W] is the buffer. First half: z = conv1x1(relu(bn1(x[:, :C])), weight1), and its statistics
        where norm2 takes those of the batch. Second half: the next G channels of x =
        dropout(conv3x3(relu(bn2(z)), weight2, padding=1)), zeros padded after the ReLU, and their statistics if
        `tracked`. z may be None where both halves run: it is then kept nowhere.

        Dropout keeps element i of the dense output [M, G], i = row * G + channel, when the upper 24 bits of
        SplitMix64(seed + (i + 1) * 0x9E3779B97F4A7C15) are at least round(p * 2**24), and scales what it keeps by
        1 / (1 - p): a function of (seed, i) alone, stored nowhere, on which all backends agree (Steele, Lea and Flood,
        "Fast splittable pseudorandom number generators", OOPSLA 2014).
        """

    def block_bwd(
        self,
        g: Updated[Tensor],
        correction: Updated[Tensor],
        x: Tensor,
        stats: Tensor,
        z: Tensor | None,
        block: Block,
        gradients: Written[list[Tensor | None]],
        u: Scratch[Tensor | None],
        begin: int,
        end: int,
        halves: int,
        /,
    ) -> None:
        """The halves of the layers from `end` back to `begin`; g [N, C_total, H, W] is the gradient of the buffer
        before its correction.

        Second half: from the layer's channels of g, corrected by their a and b, u [N, K, H, W], the gradient at norm2's
        output, the correction of z, and norm2's and weight2's gradients. First half: from u, corrected, what norm1
        adds to g and its correction, and norm1's and weight1's gradients. z None is recomputed. The halves can
        be called apart for one layer at a time, with z and u, which its first half leaves unspecified.

        A second half may leave anything in the layer's channels of g, which nobody reads again.
        """

    def transition_fwd(
        self, x: Tensor, norm: Norm, weight: Tensor, y: Written[Tensor], stats: Written[Tensor | None], /
    ) -> None:
        """y = conv1x1(avg_pool2x2(relu(bn(x))), weight) and y's statistics: x [N, C, H, W], weight [K, C, 1, 1],
        y [N, K, H // 2, W // 2]. An odd last row or column is left out."""

    def transition_bwd(
        self,
        dy: Tensor,
        x: Tensor,
        norm: Norm,
        weight: Tensor,
        dx: Written[Tensor],
        dnorm: NormGradient,
        dweight: Written[Tensor | None],
        /,
    ) -> None:
        """dx = gamma * rstd * v, before its correction."""

    def stem_fwd(self, x: Tensor, norm: Norm, y: Written[Tensor], stats: Written[Tensor | None], /) -> None:
        """y = max_pool(relu(bn(x)), 3, stride 2, padding 1) and y's statistics: x [N, C, H, W],
        y [N, C, (H + 1) // 2, (W + 1) // 2]."""

    def stem_bwd(self, dy: Tensor, x: Tensor, norm: Norm, dx: Written[Tensor], dnorm: NormGradient, /) -> None:
        """dx = gamma * rstd * v, before its correction."""

    def head_fwd(self, x: Tensor, norm: Norm, y: Written[Tensor], /) -> None:
        """y [N, C] = mean over H, W of relu(bn(x)), x [N, C, H, W]."""

    def head_bwd(self, dy: Tensor, x: Tensor, norm: Norm, dx: Written[Tensor], dnorm: NormGradient, /) -> None:
        """dx = gamma * rstd * v, before its correction; dy [N, C]."""
