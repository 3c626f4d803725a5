"""Memory of a training step beside torchvision's two modes: kept after the forward, and at the peak."""

import pytest

from .memory import measure
from .peers import NETS, build


@pytest.mark.parametrize("efficient", [False, True], ids=["default", "efficient"])
@pytest.mark.parametrize("net", NETS)
def test_memory(report, device, net: str, efficient: bool) -> None:
    ours, peer, x = build(net, device, efficient)
    for module in peer.features.modules():
        if hasattr(module, "memory_efficient"):
            module.memory_efficient = efficient
    names = ("densenet_fast", "torchvision") if not efficient else ("efficient=True", "memory_efficient=True")
    for name, model in zip(names, (ours, peer), strict=True):
        live, peak = (b / len(x) / 1e6 for b in measure(model, x))
        report(f"{net:37} {name:22} {live:8.2f} MB/image kept {peak:8.2f} MB/image peak")
