"""What is measured: whole nets, their dense blocks, blocks of any shape; each stock and ours, with the same weights."""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision
from torch import nn
from torchvision.models.densenet import _DenseBlock

import densenet_fast

TORCHVISION = ("densenet121", "densenet161", "densenet169", "densenet201")


class Subject(NamedTuple):
    """Something to measure, and the shape of one of its inputs.

    stock: torchvision's, `memory_efficient` its argument. ours: of `backend` and `efficient`; both take one state_dict.
    is_net: a whole net, whose input needs no gradient and which other libraries build too.
    """

    name: str
    stock: Callable[[bool], nn.Module]
    ours: Callable[[str, bool], nn.Module]
    shape: tuple[int, int, int]
    is_net: bool = True


def net(name: str, image: int) -> Subject:
    """`densenet121` and torchvision's others, or `bc-<depth>-<growth rate>`: DenseNet-BC for small images.

    Raises:
        ValueError: no such net.
    """
    if name in TORCHVISION:
        return Subject(
            name,
            lambda checkpointed: getattr(torchvision.models, name)(memory_efficient=checkpointed),
            lambda backend, efficient: getattr(densenet_fast, name)(backend=backend, efficient=efficient),
            (3, image, image),
        )
    match = re.fullmatch(r"bc-(\d+)-(\d+)", name)
    if match is None or int(match[1]) < 10 or int(match[1]) % 6 != 4:
        raise ValueError(
            f"unknown net: got {name!r}, expected {', '.join(TORCHVISION)} or bc-<depth>-<growth rate> with a depth of "
            "6n + 4, for instance bc-100-12"
        )
    depth, growth = int(match[1]), int(match[2])
    layers = ((depth - 4) // 6,) * 3

    def stock(checkpointed: bool) -> nn.Module:
        model = torchvision.models.DenseNet(growth, layers, 2 * growth, num_classes=10, memory_efficient=checkpointed)
        model.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
        model.features.norm0 = model.features.relu0 = model.features.pool0 = nn.Identity()
        return model

    def ours(backend: str, efficient: bool) -> nn.Module:
        return densenet_fast.DenseNet(
            growth, layers, num_init_features=2 * growth, backend=backend, efficient=efficient
        )

    return Subject(name, stock, ours, (3, image, image))


def blocks(name: str, image: int) -> list[Subject]:
    """Every dense block of a net with the transition behind it."""
    whole = net(name, image)
    features = whole.ours("plain", False).features.eval()
    names = [child for child, _ in features.named_children()]
    found = []
    for start, child in enumerate(names):
        if child.startswith("denseblock"):
            number = child.removeprefix("denseblock")
            part = slice(start, start + 1 + (f"transition{number}" in names))
            with torch.no_grad():
                _, *shape = features[:start](torch.zeros(1, *whole.shape)).shape
            found.append(_part(whole, f"{name}, block {number}", part, names[part], tuple(shape)))
    return found


def _part(whole: Subject, name: str, part: slice, children: list[str], shape: tuple[int, int, int]) -> Subject:
    def stock(checkpointed: bool) -> nn.Module:
        features = whole.stock(checkpointed).features
        return nn.Sequential(OrderedDict((child, getattr(features, child)) for child in children))

    def ours(backend: str, efficient: bool) -> nn.Module:
        return whole.ours(backend, efficient).features[part]

    return Subject(name, stock, ours, shape, is_net=False)


def short_block(channels: int, growth: int, height: int, width: int) -> Subject:
    """A block of four layers behind `channels` channels: fewer than any published net has."""
    return Subject(
        f"C {channels}, k {growth}, {height}x{width}",
        lambda checkpointed: nn.Sequential(_DenseBlock(4, channels, 4, growth, 0.0, checkpointed)),
        lambda backend, efficient: nn.Sequential(
            densenet_fast.DenseBlock(4, channels, 4, growth, 0.0, efficient, backend)
        ),
        (channels, height, width),
        is_net=False,
    )
