"""What a trunk refuses before anything has run: one sentence with what was got and what was expected."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import stage
from .block import DenseBlock
from .eligibility import why_not, why_not_norm
from .transition import Transition


def check_input(trunk: nn.Sequential, x: Tensor, passed: set[tuple[int, int, int]]) -> None:
    """Refuse what the trunk cannot process, before anything has run. `passed`: shapes N, H, W of images that are known
    to be large enough, to which x's is added.

    Raises:
        ValueError: wrong dimensions or channels, an image too small for the poolings, one value per channel where a
            norm uses batch statistics.
        RuntimeError: wrong dtype or device.
    """
    if x.dim() != 4:
        raise ValueError(f"wrong number of dimensions: got {list(x.shape)}, expected [N, C, H, W]")
    first = next(trunk.children(), None)
    if isinstance(first, nn.Conv2d) and why_not(first, nn.Conv2d) is None:  # else it may convert x, or its own weight
        if not x.is_floating_point():
            raise RuntimeError(f"wrong dtype: got input {x.dtype}, expected a floating dtype")
        if x.shape[1] != first.in_channels:
            raise ValueError(
                f"wrong number of channels: got {x.shape[1]} in input {list(x.shape)}, expected {first.in_channels}"
            )
        if (weight := first._parameters.get("weight")) is not None:  # None where it is parametrized: evaluated once
            stage.check_weight("conv0.weight", weight, x)
    shape = x.shape[0], x.shape[2], x.shape[3]
    if not torch.compiler.is_compiling() and shape in passed:  # sizes in a graph may be variables
        return
    bad = _too_small(trunk, *x.shape[2:])
    if bad is not None:
        least = next(s for s in range(1, 1 << 20) if _too_small(trunk, s, s) is None)
        raise ValueError(
            f"image too small for the poolings: got {x.shape[2]}x{x.shape[3]}, of which nothing is left behind {bad}, "
            f"expected at least {least}x{least}"
        )
    for name, module, h, w in _sizes(trunk, *x.shape[2:]):
        if x.shape[0] * h * w == 1 and _uses_batch_statistics(module):
            raise ValueError(
                f"one value per channel: got batch size 1 and a 1x1 image at {name} from input {list(x.shape)}, "
                "expected more than one value to take batch statistics of; use a larger batch or image, or model.eval()"
            )
    if not torch.compiler.is_compiling():
        passed.add(shape)


def _sizes(trunk: nn.Sequential, h: int, w: int) -> Iterator[tuple[str, nn.Module, int, int]]:
    """Each child with the image size at its input, as far as the children are known."""
    for name, module in trunk.named_children():
        parts = [*module.children()] if _is_stock(module, Transition) else [module]
        if not all(_is_stock(part, *_SIZED) or why_not_norm(part) is None for part in parts):
            return
        yield name, module, h, w
        for part in parts:
            if isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                if isinstance(part.padding, str) or getattr(part, "ceil_mode", False):
                    return
                h, w = (_pooled_size(part, size, i) for i, size in enumerate((h, w)))
    yield "the last module", nn.Identity(), h, w


_SIZED = (DenseBlock, nn.ReLU, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)  # whose output's size can be told


def _is_stock(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether calling `module` does what one of `classes` does, and no hook could resize anything."""
    known = next((cls for cls in classes if isinstance(module, cls)), None)
    return known is not None and why_not(module, known) is None


def _pooled_size(module: Any, size: int, axis: int) -> int:
    """The size along `axis` behind a convolution or pooling."""

    def of(value: int | tuple[int, int]) -> int:
        return value if isinstance(value, int) else value[axis]

    span = of(getattr(module, "dilation", 1)) * (of(module.kernel_size) - 1) + 1
    room = size + 2 * of(module.padding) - span
    return max(0, room // of(module.stride) + 1)


def _too_small(trunk: nn.Sequential, h: int, w: int) -> str | None:
    """The name of the child behind which nothing of an h x w image is left, or None."""
    before = "the input"
    for name, _, height, width in _sizes(trunk, h, w):
        if height == 0 or width == 0:
            return before
        before = name
    return None


def _uses_batch_statistics(module: nn.Module) -> bool:
    return any(
        norm.training or norm.running_mean is None for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)
    )
