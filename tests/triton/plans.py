"""What the product launches: stages of real nets, planned on the meta device for any architecture, nothing computed.

The tests' process and the compilers' see the same kernels, tiles, divisibilities and grids as a GPU would.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from densenet_fast import backends, functional
from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.launch import Device, Launch, recorded
from densenet_fast.contract import DECLARATIONS
from densenet_fast.stage.buffer import allocate

DEVICES = {80: Device(80, 108), 90: Device(90, 132), 100: Device(100, 148)}


class Form(NamedTuple):
    dtype: torch.dtype
    precision: str  # of PyTorch's convolutions in float32


FORMS = {
    "bf16": Form(torch.bfloat16, "ieee"),
    "fp16": Form(torch.float16, "ieee"),
    "tf32": Form(torch.float32, "tf32"),
    "fp32": Form(torch.float32, "ieee"),
}


class Net(NamedTuple):
    """A stage: images [n, channels, size, size] through layers of one growth rate, if any, and a consumer."""

    n: int
    size: int
    channels: int
    growth: int
    consumer: str | None
    bottleneck: int | None = 4
    drop_rate: float = 0.0
    layers: int = 2
    frozen: Collection[str] = ()  # fields of the steps that need no gradient, and "x"


# Stages of DenseNet-121 and -161, the CIFAR nets with their growths of 12, 24 and 40 and their dropout, layers without
# a bottleneck, a growth that is a multiple of nothing, and convolutions that are frozen.
NETS = (
    Net(32, 56, 64, 32, "transition"),
    Net(32, 14, 256, 32, None),
    Net(256, 14, 256, 32, None),
    Net(32, 7, 512, 32, "head"),
    Net(32, 28, 192, 48, "transition"),
    Net(64, 32, 24, 12, "transition", drop_rate=0.2),
    Net(64, 8, 300, 24, "head"),
    Net(256, 28, 24, 12, None),
    Net(64, 16, 240, 40, "transition"),
    Net(64, 32, 16, 12, "transition", bottleneck=None, drop_rate=0.2),
    Net(3, 9, 37, 7, "transition"),
    Net(32, 112, 64, 0, "stem"),
    Net(32, 28, 128, 32, "transition", frozen=("weight1", "weight2", "weight")),
)


FUNCTIONS = SimpleNamespace(**{name: getattr(operations, name) for name in DECLARATIONS})


def planning() -> AbstractContextManager[object]:
    """Inside, nets call the backend's functions themselves: operators have fakes that launch nothing."""
    return patch.object(backends, "operations", lambda *_: FUNCTIONS)


@contextmanager
def convolutions(precision: str) -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def plan(net: Net, device: Device, form: Form) -> list[Launch]:
    """The launches of a training step's forward and backward and of inference."""
    forward, backward = step(net, device, form, train=True)
    return forward + backward + step(net, device, form, train=False)[0]


def step(
    net: Net, device: Device, form: Form, train: bool, efficient: bool = False, running: bool | None = None
) -> tuple[list[Launch], list[Launch]]:
    """The launches of the forward and, in training, of the backward. `running`: whether norms take the running
    statistics, in training as well; if not given, in inference alone."""
    with convolutions(form.precision), torch.device("meta"), planning():
        layers, consumer = _steps(net, form.dtype, train, not train if running is None else running)
        x = allocate((net.n, net.channels, net.size, net.size), torch.empty(0, dtype=form.dtype))
        x.requires_grad_(train and "x" not in net.frozen)
        with recorded(device) as forward:
            stats = train and not isinstance(consumer, functional.Head)
            output = functional.dense_stage(x, layers, consumer, output_stats=stats, efficient=efficient)
        with recorded(device) as backward:
            if output.y.requires_grad:
                output.y.backward(torch.empty_like(output.y))
    return forward, backward


def _steps(net: Net, dtype: torch.dtype, train: bool, running: bool):
    def norm(name: str, c: int) -> functional.Norm:
        gamma, beta = (torch.empty(c, requires_grad=train and name not in net.frozen) for _ in range(2))
        return functional.Norm(*(torch.empty(c) if running else None for _ in range(2)), gamma, beta, 1e-5)

    def weight(name: str, k: int, c: int, size: int) -> Tensor:
        return torch.empty(k, c, size, size, dtype=dtype, requires_grad=train and name not in net.frozen)

    drop = (net.drop_rate, torch.empty((), dtype=torch.int64)) if net.drop_rate and train else (0.0, None)
    layers, c, k = [], net.channels, net.growth
    for _ in range(net.layers if k else 0):
        if net.bottleneck is None:
            layers.append(functional.Plain(norm("norm1", c), weight("weight1", k, c, 3), *drop))
        else:
            width = net.bottleneck * k
            first = norm("norm1", c), weight("weight1", width, c, 1)
            second = norm("norm2", width), weight("weight2", k, width, 3)
            layers.append(functional.Bottleneck(*first, *second, *drop))
        c += k
    consumers = {
        "transition": lambda: functional.Transition(norm("norm", c), weight("weight", c // 2, c, 1)),
        "head": lambda: functional.Head(norm("norm", c)),
        "stem": lambda: functional.Stem(norm("norm", c)),
    }
    return layers, consumers[net.consumer]() if net.consumer else None


def everything(device: Device, form: Form) -> list[Launch]:
    """The nets' launches, a layer for every size class in the tables, and the running statistics."""
    with recorded(device) as launches, convolutions(form.precision), torch.device("meta"):
        kind = tiles.kind_of(torch.empty(0, dtype=form.dtype))
        norms = [torch.empty(64)] * 20
        counters = [torch.empty((), dtype=torch.int64)] * 20
        operations.update_running_stats(norms, norms, counters, torch.empty(2, 64), [0] * 20, 9, [0.1] * 20)
    rows = [rows for (_, of, product), rows in tiles.TABLE.items() if (of, product) == (device.architecture, kind)]
    widths = sorted({min(most, 320) for most, _ in chain(*rows)})
    nets = [*NETS, *(Net(16, 14, 128, width, None, bottleneck=1) for width in widths)]
    return launches + [launch for net in nets for launch in plan(net, device, form)]
