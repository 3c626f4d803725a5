"""The triton backend: fused kernels for NVIDIA GPUs of compute capability 8.0 and up; float32, bfloat16, float16.

The contract is in `densenet_fast/ops`; a function here carries its operation's name and arguments.
"""

from .batch_norm import bn_bwd_apply, channel_stats, update_running_stats

DISPATCH_KEY = "CompositeExplicitAutograd"

__all__ = [
    "DISPATCH_KEY",
    "bn_bwd_apply",
    "channel_stats",
    "update_running_stats",
]
