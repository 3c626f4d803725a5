"""What code around a model sees, as torchvision's model shows it: memory formats, values, tensors it may change."""

import copy
import subprocess
import sys

import pytest
import torch
import torchvision.models as stock
from torch import nn

from densenet_fast import DenseNet
from densenet_fast.buffer import memory_format
from densenet_fast.torchvision import DenseNet as Ours

from .oracle import away_from_start, error

CONFIG = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 6, "num_classes": 5}
WATCHED = (
    *("", "features", "features.conv0", "features.norm0", "features.relu0", "features.pool0", "features.denseblock1"),
    *("features.denseblock1.denselayer2", "features.denseblock1.denselayer1.norm1", "features.transition1"),
    *("features.transition1.conv", "features.denseblock2", "features.norm5"),
)


def pair(**changes):
    """torchvision's net and ours with the same weights, in float64 on the eager backend."""
    torch.manual_seed(0)
    theirs = away_from_start(stock.DenseNet(**(CONFIG | changes)).double())
    ours = Ours(**(CONFIG | changes)).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def image(n=2, h=33, w=40, dtype=torch.float64):
    return torch.randn(n, 3, h, w, dtype=dtype)


LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "crop": lambda x: x[:, :, 1:, 3:],
    "crop of channels_last": lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 3:],
    "gray": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "every second": lambda x: x[::2],
}


def tensors(value):
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else [value]


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hooks_see_what_they_see_in_torchvision(layout, weights):
    """Inputs and outputs of every kind of module: strides at the time of the call, values after it."""
    x = LAYOUTS[layout](image())
    for name in WATCHED:
        seen = []
        for model in pair():
            model.to(memory_format=weights)
            calls = []

            def look(_, inputs, output, calls=calls):
                calls.extend((t, t.stride()) for t in tensors([inputs, output]))

            model.get_submodule(name).register_forward_hook(look)
            y = model(x)
            seen.append([*calls, (y, y.stride())])
        for (theirs, expected), (ours, got) in zip(*seen, strict=True):
            assert got == expected, name
            assert error(ours.detach(), theirs.detach()) < 1e-10, name
