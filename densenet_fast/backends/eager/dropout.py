"""The counter-based dropout of `contract.Operations.block_fwd` in int64 tensor arithmetic."""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # SplitMix64's constants, as signed 64-bit integers
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; int64's own shift is arithmetic."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def dropout_mask(like: Tensor, drop_rate: float, seed: Tensor) -> Tensor:
    """Multipliers of dropout for rows `like` [M, G]: 0 or 1 / (1 - drop_rate), in like's dtype."""
    z = torch.arange(1, like.numel() + 1, device=like.device).mul_(_GOLDEN).add_(seed)
    z = z.bitwise_xor_(_shift(z, 30)).mul_(_MIX1)
    z = z.bitwise_xor_(_shift(z, 27)).mul_(_MIX2)
    z = z.bitwise_xor_(_shift(z, 31))
    keep = _shift(z, 40) >= round(drop_rate * (1 << 24))
    return keep.view(like.shape).to(like.dtype).div_(1 - drop_rate if drop_rate < 1 else 1)
