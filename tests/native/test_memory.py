"""The bounds of tests/test_memory.py hold with native kernels too, their scratch included."""

import pytest
import torch

import densenet_fast
from benchmarks.memory import measure

from ..rows import thorough


@pytest.mark.entry
@pytest.mark.parametrize(("efficient", "live", "peak"), [thorough(False, 26.4, 30.8), (True, 6.0, 14.4)])
def test_densenet121_at_224(efficient, live, peak):
    """MB per image, batch 8."""
    memory = measure(densenet_fast.densenet121(efficient=efficient, backend="native"), torch.randn(8, 3, 224, 224))
    assert memory.live / 8e6 <= live
    assert memory.peak / 8e6 <= peak
