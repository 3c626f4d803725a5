"""What the dropout of a stage's layers draws: a seed for each layer, of which kernels make the mask of all its values;
or, where whole channels of images are dropped, as nn.Dropout2d does, the masks themselves, which are small.

    densenet_fast::dropout_seeds, densenet_fast::dropout_masks   the same in graphs

A compiler leaves the drawing to these operators, and with it the order of the draws: under a seed it is the same. They
are given x, on which they wait, so that stages draw in their order, and a new empty tensor each: of two calls with
equal arguments a compiler makes one, though they are declared to be random, and two stages would drop the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contract.block import Layer
from .checks import compute_dtype
from .spec import StageSpec

_library = torch.library.Library("densenet_fast", "FRAGMENT")


def drawn(spec: StageSpec, x: Tensor) -> Tensor | None:
    """For a stage that is given x [N, C0, H, W]: seeds, int64 [layers]; masks [N, channels that all layers add], of 0
    and 1 / (1 - drop_rate); None where nothing is dropped."""
    if not spec.drops:
        return None
    if not spec.drops_channels:
        return _call("dropout_seeds", _seeds, x, len(spec.layers), x.device)
    channels, rates = [layer.growth for layer in spec.layers], [layer.drop_rate for layer in spec.layers]
    return _call("dropout_masks", _masks, x, x.shape[0], channels, rates, compute_dtype(x, spec.convolves), x.device)


def mask_of(masks: Tensor, layer: Layer, spec: StageSpec) -> Tensor:
    """[N, G, 1, 1] of a layer."""
    mask = masks[:, layer.begin - spec.channels : layer.end - spec.channels]
    return mask.view(*mask.shape, *[1] * spec.dims)


def _call(name: str, function: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
    if torch.compiler.is_compiling():
        return getattr(torch.ops.densenet_fast, name).default(x.detach(), x.new_empty((0,)), *arguments)
    return function(*arguments)


def _seeds(layers: int, device: torch.device) -> Tensor:
    limits = torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (layers,), device=device)


def _masks(
    images: int, channels: Sequence[int], rates: Sequence[float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """With the very draws of nn.Dropout2d behind each layer."""
    found = torch.ones((images, sum(channels)), dtype=dtype, device=device)
    for mask, rate in zip(found.split(list(channels), 1), rates, strict=True):
        if rate == 1:
            mask.zero_()
        elif rate > 0:
            mask.copy_(torch.empty(mask.shape, dtype=dtype, device=device).bernoulli_(1 - rate).div_(1 - rate))
    return found


def _register(name: str, schema: str, real: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """`schema`: of the arguments behind x and the new tensor, which no draw depends on."""
    _library.define(f"{name}(Tensor x, Tensor new, {schema}) -> Tensor", tags=[torch.Tag.nondeterministic_seeded])
    _library.impl(name, lambda x, new, *arguments: real(*arguments), "CompositeExplicitAutograd")
    torch.library.register_fake(f"densenet_fast::{name}", lambda x, new, *arguments: fake(*arguments), lib=_library)


_register(
    "dropout_seeds",
    "int layers, Device device",
    _seeds,
    lambda layers, device: torch.empty(layers, dtype=torch.int64, device=device),
)
_register(
    "dropout_masks",
    "SymInt images, int[] channels, float[] rates, ScalarType dtype, Device device",
    _masks,
    lambda images, channels, _, dtype, device: torch.empty((images, sum(channels)), dtype=dtype, device=device),
)
