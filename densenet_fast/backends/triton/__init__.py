"""The triton backend: fused kernels for NVIDIA GPUs of compute capability 8.0 and up; float32, bfloat16, float16.

The contract is in `densenet_fast/ops`; a function here carries its operation's name and arguments.
"""

from .batch_norm import bn_bwd_apply, channel_stats, update_running_stats
from .bn_relu_conv1x1 import bn_relu_conv1x1_bwd, bn_relu_conv1x1_fwd
from .bn_relu_conv3x3_bwd import bn_relu_conv3x3_bwd
from .bn_relu_conv3x3_fwd import bn_relu_conv3x3_fwd
from .bottleneck import bottleneck_infer
from .dense_block import dense_block_bwd, dense_block_fwd
from .head import head_bwd, head_fwd
from .stem import stem_bwd, stem_fwd
from .transition import transition_bwd, transition_fwd

DISPATCH_KEY = "CompositeExplicitAutograd"

__all__ = [
    "DISPATCH_KEY",
    "bn_bwd_apply",
    "bn_relu_conv1x1_bwd",
    "bn_relu_conv1x1_fwd",
    "bn_relu_conv3x3_bwd",
    "bn_relu_conv3x3_fwd",
    "bottleneck_infer",
    "channel_stats",
    "dense_block_bwd",
    "dense_block_fwd",
    "head_bwd",
    "head_fwd",
    "stem_bwd",
    "stem_fwd",
    "transition_bwd",
    "transition_fwd",
    "update_running_stats",
]
