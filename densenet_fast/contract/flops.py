"""FLOPs for torch.utils.flop_counter.FlopCounterMode: what it counts for the layers that an operation stands for.

They differ from those that are computed (traffic.py) in a transition, which pools first: the layers multiply four times
as much.
"""

from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .declaration import DECLARATIONS
from .traffic import traffic


def register() -> None:
    """Have counters that are active count our operations, whose formulas they took before these were loaded. To be
    called where any mode is active."""
    for mode in _get_current_dispatch_mode_stack():
        registry = getattr(getattr(mode, "counter", None), "flop_registry", None)
        if registry is not None:
            for operation in DECLARATIONS:
                registry[getattr(torch.ops.densenet_fast, operation)] = partial(flops, operation)


def flops(operation: str, *flat: Any, out_val: None = None) -> int:
    """Of one call of an operation with the arguments of its operator."""
    counted = traffic(operation, flat).flops
    if not operation.startswith("transition"):
        return counted
    given = dict(zip([argument.name for argument in DECLARATIONS[operation].arguments], flat, strict=True))
    pooled = given["dy" if "dy" in given else "y"]
    pixels, pooled_pixels = (image.numel() // image.shape[1] for image in (given["x"], pooled))
    return counted // pooled_pixels * pixels
