"""The published nets: `create`, their parameters and multiply-adds, and the command `densenet-fast nets`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from . import torchvision
from .cli import PROGRAM, Parser
from .configurations import NAMES, configuration
from .models import DenseNet


def create(name: str, **overrides: Any) -> DenseNet:
    """A published DenseNet, with the paper's initial weights: `create("densenet_bc_100_12", num_classes=100)`.

    Args:
        name: see `configurations.configuration`.
        **overrides: arguments of `densenet_fast.DenseNet`, which replace the net's own; for 121, 161, 169 and 201
            also `weights` (and `progress`), with which the function of torchvision's name makes the net.

    Raises:
        ValueError: there is no such net, or weights of it; as `densenet_fast.DenseNet`.
    """
    published = configuration(name)
    if overrides.get("weights") is None:
        overrides = {key: value for key, value in overrides.items() if key not in ("weights", "progress")}
        return DenseNet(**{**published.arguments(), **overrides})
    build = getattr(torchvision, name, None)
    if build is None:
        raise ValueError(f"weights: got weights for {name}, expected None: there are none")
    return build(**overrides)


class Size(NamedTuple):
    """What a net costs whoever runs it.

    Attributes:
        parameters: how many numbers.
        multiply_adds: of one image's forward; each is a product and the sum that it enters.
    """

    parameters: int
    multiply_adds: int


def size(model: nn.Module, image: Sequence[int]) -> Size:
    """Of any net for an image [channels, H, W], counted by PyTorch's FlopCounterMode without computing anything.

    The model, whose layers must run on the meta device, stays as it is; a net made on that device costs no memory.
    """
    from torch.utils.flop_counter import FlopCounterMode

    modes = {module: module.training for module in model.modules()}
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    try:
        model.eval()  # running statistics do not move
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            torch.func.functional_call(model, state, torch.empty(1, *image, device="meta"))
    finally:
        for module, training in modes.items():
            module.training = training
    return Size(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def size_of(name: str) -> Size:
    """Of a published net (`configurations.configuration`) for images of the side it was made for."""
    side = configuration(name).image
    with torch.device("meta"):
        return size(create(name, backend="plain"), (3, side, side))


def main(arguments: Sequence[str]) -> int:
    """`densenet-fast nets`."""
    parser = Parser(
        prog=f"{PROGRAM} nets",
        description="The published nets, with what `densenet_fast.create` makes of their names: parameters, and "
        "multiply-adds of an image's forward. densenet_<depth>_<growth rate>, with b_, c_ or bc_ before the depth, "
        "makes others for small images.",
    )
    parser.parse_args(arguments)
    print(f"{'net':<20}{'image':>7}{'classes':>9}{'parameters':>12}{'multiply-adds':>15}")
    for name in NAMES:
        shown, side = size_of(name), configuration(name).image
        classes = 10 if side == 32 else 1000
        print(f"{name:<20}{side:>7}{classes:>9}{shown.parameters / 1e6:>10.2f} M{shown.multiply_adds / 1e9:>13.2f} G")
    return 0
