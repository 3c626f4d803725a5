"""A training step of whole stages on the CUDA operations, on any device that has them."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch.utils._pytree import tree_map

from densenet_fast.functional import dense_stage

from ..calls import Geometry, make
from ..oracle import as_under_autocast, make_stage, parameters, require_grad

# Channels, growths, what consumes them, dtype, size of the images: kernels that ask for more than 48 KB of shared
# memory, and one that would be refused if its static bytes were not counted (256 channels).
STAGES = [
    (64, (), "stem", torch.bfloat16, 18),
    (192, (32, 32, 32), "transition", torch.bfloat16, 9),
    (37, (12,), "head", torch.float16, 7),
    (24, (12,), "head", torch.float32, 5),
]


def training_step(operations: SimpleNamespace, device: torch.device) -> Callable[[], None]:
    """A function that runs forward and backward of every stage, and the update of running statistics, on tensors that
    are there already. `backends.operations` must be replaced by the operations."""
    inputs = []
    for channels, growths, consumer, dtype, size in STAGES:
        drop_rate = 0.2 if growths else 0.0
        stage = as_under_autocast(make_stage(channels, growths, consumer, drop_rate=drop_rate), dtype)
        stage = require_grad(tree_map(lambda t: t.to(device) if isinstance(t, torch.Tensor) else t, stage))
        x = torch.randn(2, channels, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
        inputs.append((x.to(device).requires_grad_(), stage))
    update = make("update_running_stats", Geometry(1, 1, 1, 24, 16, 4)).copy(device=device)

    def step() -> None:
        for x, stage in inputs:
            y = dense_stage(x, *stage, backend="eager").y
            torch.autograd.grad(y, [x, *parameters(stage)], y.detach())
        update.on(operations)

    return step
