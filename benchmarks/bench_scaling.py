"""Cost against depth, against the growth rate and against the batch: a training step's time and memory."""

import pytest

from .subjects import net
from .variants import VARIANTS

# DenseNet-BC of three blocks for 32x32 images; 154 layers is the depth in the technical report's figure (Pleiss 2017).
DEPTHS = (10, 40, 100, 154, 250, 400)
GROWTHS = (8, 12, 24, 48)
PEERS = ("torchvision", "torchvision-efficient", *(v.name for v in VARIANTS if v.backend is not None and not v.graph))
GRAPHS = ("torchvision-graph", *(v.name for v in VARIANTS if v.backend is not None and "efficient" not in v.name))


@pytest.mark.peers(*PEERS)
@pytest.mark.parametrize("depth", DEPTHS, ids="{}layers".format)
def test_depth(turn, settings, depth: int, variant: str) -> None:
    workload = settings.workload(net(f"bc-{depth}-12", 32), True, small(settings.batch))
    turn("depth", workload, variant, "forward+backward", depth, settings.brief)


@pytest.mark.peers(*PEERS)
@pytest.mark.parametrize("growth", GROWTHS, ids="k{}".format)
def test_growth(turn, settings, growth: int, variant: str) -> None:
    workload = settings.workload(net(f"bc-40-{growth}", 32), True, small(settings.batch))
    turn("growth", workload, variant, "forward+backward", growth, settings.brief)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "batch" in metafunc.fixturenames:
        most = metafunc.config.option.batch
        metafunc.parametrize("batch", [2**i for i in range(most.bit_length())], ids="N{}".format)


@pytest.mark.peers("torchvision", *GRAPHS)
def test_batch(turn, settings, batch: int, variant: str) -> None:
    workload = settings.workload(net(settings.model, settings.image), True, batch)
    turn("batch", workload, variant, "forward+backward", batch, settings.brief)


def small(batch: int) -> int:
    """A batch for nets of any depth: at 400 layers stock keeps a quarter of a gigabyte per image."""
    return max(2, batch // 4)
