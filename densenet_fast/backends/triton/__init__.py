"""The triton backend: fused kernels for NVIDIA GPUs of compute capability 8.0 and up; float32, bfloat16, float16.

The contract is in `densenet_fast/contract`; a function here carries its operation's name and arguments.
"""

from .batch_norm import bn_bwd_apply, channel_stats, update_running_stats
from .block import block_bwd, block_fwd
from .head import head_bwd, head_fwd
from .stem import stem_bwd, stem_fwd
from .transition import transition_bwd, transition_fwd

DISPATCH_KEY = "CompositeExplicitAutograd"

__all__ = [
    "DISPATCH_KEY",
    "block_bwd",
    "block_fwd",
    "bn_bwd_apply",
    "channel_stats",
    "head_bwd",
    "head_fwd",
    "stem_bwd",
    "stem_fwd",
    "transition_bwd",
    "transition_fwd",
    "update_running_stats",
]
