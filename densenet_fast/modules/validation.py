"""What a trunk refuses before anything has run: one sentence with what was got and what was expected."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .. import stage
from .block import FusableBlock
from .eligibility import AVERAGE_POOLS, CONVOLUTIONS, MAX_POOLS, is_convolution, why_not, why_not_norm
from .reading import group_of, uses_batch
from .transition import FusableTransition


def first_convolution(trunk: nn.Sequential) -> Any:
    """What x is checked against; None where x first comes to something else, which may convert it."""
    first = next(trunk.children(), None)
    return first if first is not None and is_convolution(first) else None


def check_input(trunk: Any, x: Tensor, first: Any, passed: set[tuple[int, ...]]) -> None:
    """Refuse what the trunk cannot process, before anything has run. first: its `first_convolution`. passed: shapes
    N, H, W of images that are known to be large enough, to which x's is added.

    Raises:
        ValueError: wrong dimensions or channels, an image too small for the poolings, one value per channel where a
            norm uses batch statistics.
        RuntimeError: wrong dtype or device.
    """
    dims = trunk.spatial_dims
    if first is not None or x.dim() != dims + 2:  # a module ahead of the convolutions may take any dtype
        stage.check_image(x, dims)
    weight = None if first is None else first._parameters.get("weight")
    if weight is not None:  # None where it is parametrized: evaluated once
        if x.shape[1] != (channels := weight.shape[1] * first.groups):  # another weight may have come without a word
            raise ValueError(
                f"wrong number of channels: got {x.shape[1]} in input {list(x.shape)}, expected {channels} "
                "(a net for others is made with in_channels)"
            )
        stage.check_weight("conv0.weight", weight, x)
    shape = x.shape[0], *x.shape[2:]
    if not torch.compiler.is_compiling() and shape in passed:  # sizes in a graph may be variables
        return
    bad = _too_small(trunk, shape[1:])
    if bad is not None:
        least = next(s for s in range(1, 1 << 20) if _too_small(trunk, (s,) * dims) is None)
        raise ValueError(
            f"image too small for the poolings: got {_text(shape[1:])}, of which nothing is left behind {bad}, "
            f"expected at least {_text((least,) * dims)}"
        )
    for name, module, size in _sizes(trunk, shape[1:]):
        if x.shape[0] * prod(size) == 1 and _uses_batch_statistics(module):
            raise ValueError(
                f"one value per channel: got batch size 1 and a {_text(size)} image at {name} from input "
                f"{list(x.shape)}, "
                "expected more than one value to take batch statistics of; use a larger batch or image, or model.eval()"
            )
    if not torch.compiler.is_compiling():
        passed.add(shape)


def _text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _sizes(trunk: Any, size: Sequence[int]) -> Iterator[tuple[str, nn.Module, Sequence[int]]]:
    """Each child with the image size at its input, as far as the children are known."""
    for name, module in trunk.named_children():
        parts = [*module.children()] if _is_stock(module, FusableTransition) else [module]
        if not all(_is_stock(part, *_SIZED) or why_not_norm(part, len(size)) is None for part in parts):
            return
        yield name, module, size
        for part in parts:
            if isinstance(part, _RESIZING):
                if isinstance(part.padding, str) or getattr(part, "ceil_mode", False):
                    return
                size = [_pooled_size(part, s, i) for i, s in enumerate(size)]
    yield "the last module", nn.Identity(), size


_RESIZING = (*CONVOLUTIONS.values(), *MAX_POOLS.values(), *AVERAGE_POOLS.values())
_SIZED = (FusableBlock, nn.ReLU, nn.Identity, *_RESIZING)  # whose output's size can be told


def _is_stock(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether calling `module` does what one of `classes` does, and no hook could resize anything."""
    known = next((cls for cls in classes if isinstance(module, cls)), None)
    return known is not None and why_not(module, known) is None


def _pooled_size(module: Any, size: int, axis: int) -> int:
    """The size along `axis` behind a convolution or pooling."""

    def of(value: int | tuple[int, ...]) -> int:
        return value if isinstance(value, int) else value[axis]

    span = of(getattr(module, "dilation", 1)) * (of(module.kernel_size) - 1) + 1
    room = size + 2 * of(module.padding) - span
    stride = module.kernel_size if module.stride is None else module.stride  # as PyTorch's poolings have it
    return max(0, room // of(stride) + 1)


def _too_small(trunk: nn.Sequential, size: Sequence[int]) -> str | None:
    """The name of the child behind which nothing of an image of this size is left, or None."""
    before = "the input"
    for name, _, left in _sizes(trunk, size):
        if 0 in left:
            return before
        before = name
    return None


def _uses_batch_statistics(module: nn.Module) -> bool:
    """Whether any norm takes them of this process's batch alone."""
    return any(uses_batch(norm) and group_of(norm) is None for norm in module.modules())
