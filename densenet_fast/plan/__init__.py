"""What a training step will need, before it runs, and `fit`, which makes it fit.

    plan.fit(model, image=224, batch=64, memory="24GiB")  # sets `efficient` block by block

The command `densenet-fast plan` (command.py) shows the same for a net by name.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import backends
from ..memory import Step, check
from ..models import DenseNet
from .units import parse_bytes, text_of_bytes

MARGIN = 1.015  # measured peaks are up to this much above the model's (tests/test_memory.py)


class Fit(NamedTuple):
    """How a step fits.

    Attributes:
        efficient: names of the blocks that recompute their bottleneck outputs, the first with the stem before it.
        bytes: all that a step needs, at most: parameters, buffers, images, what the optimizer keeps, and the peak.
        recomputed: multiply-adds of a step that are done once more.
    """

    efficient: tuple[str, ...]
    bytes: int
    recomputed: int


def fit(
    model: DenseNet,
    image: int | Sequence[int],
    batch: int,
    memory: int | str,
    *,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
    states: int = 0,
    nhwc: bool = False,
) -> Fit:
    """Set `efficient` of every block of the model so that a training step fits `memory` at the least recomputation.

    Args:
        image: side, or [H, W] ([D, H, W] for volumes, [L] for signals).
        batch: images in a step.
        memory: bytes for parameters, buffers, images, the optimizer's states and the step; 16e9 or "24GiB".
        dtype: of the activations; bfloat16 and float16 stand for autocast over float32 parameters.
        backend: whose operations' memory to count; None: of the backend that the model takes on its parameters' device.
        states: how many tensors of each parameter's size the optimizer keeps: 1 for SGD with momentum, 2 for Adam.
        nhwc: whether the images come in channels_last memory; if not, a copy of them is kept.

    Returns:
        What was set. An allocator's own overhead, a GPU's context and other processes are not part of it.

    Raises:
        ValueError: nothing fits, with what would; nothing is set then. An image that the model does not take. A model
            that is no DenseNet of ours.
    """
    check(model)
    budget = _budget(memory)
    step = Step.of(model, shape_of(model, image, batch), dtype, nhwc)
    name = backend_of(model, dtype, backend)
    always = resident(model, step, states)
    chosen = cheapest(step, name, budget, always)
    if chosen is None:
        least = needed(step, name, always, [True] * len(step.stages))
        largest = largest_batch(model, image, budget, dtype=dtype, backend=name, states=states, nhwc=nhwc)
        instead = f"a batch of {largest}" if largest else "smaller images or another net"
        raise ValueError(
            f"memory: got {text_of_bytes(budget)}, expected at least {text_of_bytes(least)} for a batch of {batch} "
            f"with every block efficient; {instead} would fit"
        )
    for stage, efficient in zip(step.stages, chosen, strict=True):
        if stage.can_recompute:
            getattr(model.features, stage.name).set_efficient(efficient)
    return Fit(recomputing(step, chosen), needed(step, name, always, chosen), recomputed(step, chosen))


def recomputing(step: Step, efficient: Sequence[bool]) -> tuple[str, ...]:
    """Names of the blocks that recompute anything, the stem among the first one's."""
    pairs = zip(step.stages, efficient, strict=True)
    return tuple(dict.fromkeys(stage.name for stage, chosen in pairs if chosen and stage.can_recompute))


def recomputed(step: Step, efficient: Sequence[bool]) -> int:
    """Multiply-adds that are done once more."""
    return sum(stage.recomputed for stage, chosen in zip(step.stages, efficient, strict=True) if chosen)


def cheapest(step: Step, backend: str, budget: int, always: int) -> list[bool] | None:
    """Which stages recompute, so that the step fits at the least recomputation; None if nothing fits.

    A stage's peak depends on what those before it keep, so of all choices for the first stages only those matter of
    which no other both keeps and recomputes less.
    """
    choices: list[tuple[int, int, list[bool]]] = [(0, 0, [])]  # bytes kept, multiply-adds, which recompute
    for i, stage in enumerate(step.stages):
        extended = []
        tied = i == 1 and step.stages[0].name == stage.name and step.stages[0].can_recompute and stage.can_recompute
        for efficient in (False, True) if stage.can_recompute else (True,):
            beside = step.beside(i, backend, efficient)
            for kept, cost, chosen in choices:
                if tied and chosen[0] != efficient:  # a stem does as the block behind it
                    continue
                kept += stage.kept(efficient)
                if always + round(MARGIN * (kept + beside)) <= budget:
                    extended.append((kept, cost + stage.recomputed * efficient, [*chosen, efficient]))
        choices, least = [], None
        for choice in sorted(extended, key=lambda c: c[:2]):
            if least is None or choice[1] < least:
                choices.append(choice)
                least = choice[1]
    return min(choices, key=lambda c: c[1])[2] if choices else None


def needed(step: Step, backend: str, always: int, efficient: Sequence[bool]) -> int:
    """Bytes that a step needs at most, `always` among them."""
    return always + round(MARGIN * step.peak(backend, efficient))


def largest_batch(
    model: DenseNet,
    image: int | Sequence[int],
    memory: int | str,
    *,
    efficient: bool = True,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
    states: int = 0,
    nhwc: bool = False,
) -> int:
    """The most images whose training step fits `memory`, 0 if not even one does. efficient: of all blocks; the rest as
    in `fit`."""
    check(model)
    budget, name = _budget(memory), backend_of(model, dtype, backend)

    def fits(batch: int) -> bool:
        step = Step.of(model, shape_of(model, image, batch), dtype, nhwc)
        chosen = [efficient or not stage.can_recompute for stage in step.stages]
        return needed(step, name, resident(model, step, states), chosen) <= budget

    return most(fits)


def _budget(memory: int | str) -> int:
    try:
        return parse_bytes(memory)
    except ValueError as error:
        raise ValueError(f"memory: {error}") from None


def most(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, where all below it do; 0 if 1 does not."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def resident(model: DenseNet, step: Step, states: int = 0) -> int:
    """Bytes there before a step: parameters, buffers, what the optimizer keeps, and the images in float32."""
    parameters = sum(p.numel() * p.element_size() * (1 + states * p.requires_grad) for p in model.parameters())
    return parameters + sum(b.numel() * b.element_size() for b in model.buffers()) + step.batch


def shape_of(model: DenseNet, image: int | Sequence[int], batch: int) -> tuple[int, ...]:
    """[N, C, H, W] of images of this side, or these sides."""
    size = (image,) * model.spatial_dims if isinstance(image, int) else tuple(image)
    conv0: Any = model.features.conv0
    return batch, conv0.in_channels, *size


def backend_of(model: DenseNet, dtype: torch.dtype, asked: str | None = None) -> str:
    """The backend of this name, of another machine, too; for "auto", and of the model's own for None, the one that it
    takes where its parameters are.

    Raises:
        ValueError: there is no such backend, or none but the plain layers; dtype is not that of any activations.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: got {dtype}, expected a floating dtype")
    if asked in backends.PREFERENCE:
        return asked
    device = next(model.parameters()).device
    asked = backends.check_name(asked or model.features.backend)
    if asked == "plain":
        raise ValueError("backend: got the plain layers, expected a backend (set_backend)")
    return backends.choose(asked, device, dtype)
