"""Statistics, the correction and running averages; rows and channels beyond one tile."""

from statistics import median

import pytest
import torch

from ..calls import Geometry, error
from .compare import FORMATS, call, check_error, label, sweep
from .conftest import DEVICE

SEEDS = 3  # among few values one may be rounded well or badly by chance: the median counts
GEOMETRIES = [Geometry(2, 5, 7, 24, 1, 1), Geometry(1, 1, 1, 3, 1, 1), Geometry(3, 19, 9, 67, 1, 1)]


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES, ["float32", "bfloat16", "float16"]), ids=label)
@pytest.mark.parametrize("name", ["channel_stats", "bn_bwd_apply"])
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    check_error(triton, eager, FORMATS[form], *(call(name, geometry, form) for _ in range(SEEDS)))


@pytest.mark.parametrize("ratio", [1, 30, 100])
def test_variance_where_the_mean_is_large(triton, eager, ratio):
    """Where a sum of squares would lose four digits (docs/internals/algorithm.md, "Numerics")."""
    errors = []
    for _ in range(SEEDS):
        x = (torch.randn(3, 8, 40, 50, device=DEVICE) + ratio).contiguous(memory_format=torch.channels_last)
        exact, found = torch.var_mean(x.double(), (0, 2, 3), correction=0)[0], []
        for operations in (triton, eager):
            stats = torch.empty(2, 8, device=DEVICE)
            operations.channel_stats(x, stats)
            found.append(error(stats[1], exact))
        errors.append(found)
    our, their = (median(e[side] for e in errors) for side in (0, 1))
    assert our <= 2 * their + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norms", [1, 16, 19])
def test_running_statistics_in_any_dtype(triton, eager, dtype, norms):
    """Twice, with another momentum: a plan does not depend on it."""
    sizes = [1 + 37 * i for i in range(norms)]
    stats = torch.rand(2, sum(sizes), device=DEVICE) + 0.5
    begins = [sum(sizes[i + 1 :]) for i in range(norms)]
    pairs = []
    for backend in (triton, eager):
        running = [[torch.full((s,), v, dtype=dtype, device=DEVICE) for s in sizes] for v in (0.25, 0.75)]
        counters = [torch.tensor(i, device=DEVICE) for i in range(norms)]
        for momentum in (0.3, 0.7):
            backend.update_running_stats(*running, counters, stats, begins, 6, [momentum] * norms)
        assert [int(counter) for counter in counters] == list(range(2, norms + 2))
        pairs.append(running[0] + running[1])
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours - theirs).abs().max() <= 4 * torch.finfo(dtype if dtype.itemsize < 8 else torch.float32).eps
