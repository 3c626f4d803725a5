"""Parameters and multiply-adds of nets, and the command `densenet-fast nets`, which lists the published ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from .cli import PROGRAM, Parser
from .configurations import NAMES, configuration, create


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
