"""Dense blocks with the transition behind them, and short blocks over many shapes: where a backend loses it shows."""

import pytest

from .subjects import blocks, short_block
from .variants import VARIANTS

OURS = [v.name for v in VARIANTS if v.backend is not None and not v.graph]

# Growth rates of the paper's nets, first and last layers of their blocks, their image sizes, and shapes that divide by
# nothing: channels, growth rate, height, width, batch.
SHAPES = [
    (24, 12, 32, 32, 16),
    (330, 12, 8, 8, 16),
    (64, 32, 56, 56, 2),
    (224, 32, 56, 56, 2),
    (256, 32, 14, 14, 8),
    (992, 32, 14, 14, 8),
    (992, 32, 7, 7, 8),
    (96, 48, 56, 56, 2),
    (2160, 48, 7, 7, 4),
    (80, 40, 32, 32, 4),
    (150, 24, 16, 16, 8),
    (37, 5, 13, 11, 3),
    (64, 32, 7, 7, 1),
    (512, 32, 1, 1, 32),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "block" in metafunc.fixturenames:
        option = metafunc.config.option
        found = blocks(option.model, option.image)
        metafunc.parametrize("block", found, ids=[f"block {i}" for i in range(1, len(found) + 1)])


@pytest.mark.peers("torchvision", *OURS)
@pytest.mark.parametrize("phase", ["forward", "forward+backward"])
def test_block_training(turn, settings, block, variant: str, phase: str) -> None:
    turn("block-training", settings.workload(block, True), variant, phase, effort=settings.brief)


@pytest.mark.peers("torchvision", *OURS)
def test_block_inference(turn, settings, block, variant: str) -> None:
    turn("block-inference", settings.workload(block, False), variant, "inference", effort=settings.brief)


@pytest.mark.peers("torchvision", "torchvision-nchw", "native", "triton", "eager")
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", SHAPES, ids=[f"C{c} k{k} {h}x{w} N{n}" for c, k, h, w, n in SHAPES])
def test_shape(turn, settings, shape, training: bool, variant: str) -> None:
    *size, batch = shape
    phase = "forward+backward" if training else "inference"
    effort = settings.brief._replace(seconds=3.0)  # the smallest blocks need more rounds than the others
    turn("shapes", settings.workload(short_block(*size), training, batch), variant, phase, effort=effort)
