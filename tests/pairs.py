"""torchvision's net and ours with the same weights, and images in every layout: what drop-in tests start from."""

import pytest
import torch
import torchvision.models as stock
from torch import nn

from densenet_fast import backends
from densenet_fast.torchvision import DenseNet as Ours

from .oracle import away_from_start

CONFIG = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 6, "num_classes": 5}
BACKENDS = [
    pytest.param(name, marks=[pytest.mark.skipif(reason is not None, reason=str(reason))])
    for name in ("eager", "native")
    for reason in [backends.why_unavailable(name, torch.device("cpu"))]
]


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


def all_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
