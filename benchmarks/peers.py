"""The nets that are measured, ours beside torchvision's with the same weights, and the check that they agree."""

from functools import cache
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

import densenet_fast

from .memory import mean_square

NETS = ("DenseNet-121, 224x224, batch 8", "DenseNet-BC(100,12), 32x32, batch 64")


class Pair(NamedTuple):
    """Two models with one set of weights, and a batch; all channels_last, torchvision's fastest layout on a CPU."""

    ours: densenet_fast.DenseNet
    peer: nn.Module
    x: Tensor


def build(net: str, device: torch.device, efficient: bool = False) -> Pair:
    """One of `NETS`, always with the same weights; `efficient` is ours alone, as the peer is what it competes with."""
    torch.manual_seed(0)
    ours: densenet_fast.DenseNet
    if net == NETS[0]:
        ours = densenet_fast.densenet121(efficient=efficient)
        peer = torchvision.models.densenet121()
        x = torch.randn(8, 3, 224, 224)
    else:
        ours = densenet_fast.DenseNet(12, (16, 16, 16), efficient=efficient)
        peer = torchvision.models.DenseNet(12, (16, 16, 16), 24, num_classes=10)
        peer.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        peer.features.norm0 = peer.features.relu0 = peer.features.pool0 = nn.Identity()
        x = torch.randn(64, 3, 32, 32)
    ours.load_state_dict(peer.state_dict())
    models = (model.to(device, memory_format=torch.channels_last) for model in (ours, peer))
    return Pair(*models, x.to(device, memory_format=torch.channels_last))


def check(net: str, device: torch.device, efficient: bool, training: bool) -> None:
    """Hold our fp32 error to at most twice torchvision's, both against torchvision in float64.

    Compared are the output and, in training, all gradients as one vector, by the relative L2 norm.

    Raises:
        AssertionError: our error is larger.
    """
    exact, allowed = _reference(net, device, training)
    pair = build(net, device, efficient)
    for name, error in _errors(_results(pair.ours, pair.x, training), exact).items():
        limit = 2 * allowed[name]
        assert error <= limit, f"{name} of {net}: got a relative error of {error:.1e}, expected at most {limit:.1e}"


@cache
def _reference(net: str, device: torch.device, training: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
    """torchvision's results in float64, and the relative errors of its results in fp32."""
    _, peer, x = build(net, device)
    exact = _results(peer.double(), x.double(), training)
    _, peer, x = build(net, device)
    return exact, _errors(_results(peer, x, training), exact)


def _results(model: nn.Module, x: Tensor, training: bool) -> dict[str, Tensor]:
    model.train(training)
    if not training:
        with torch.inference_mode():
            return {"output": model(x)}
    y = model(x)
    mean_square(y).backward()
    return {"output": y.detach(), "gradients": torch.cat([p.grad.flatten() for p in model.parameters()])}


def _errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {name: ((got[name] - right).norm() / right.norm()).item() for name, right in exact.items()}
