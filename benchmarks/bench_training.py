"""Speed of a training step and of inference against torchvision, which takes turns with us in every round.

A ratio above 1 says how many times as fast as torchvision we are. Each is the ratio of the medians; beside it stand the
20th and 80th percentile of the rounds' own ratios. Nothing is timed before outputs and gradients agree.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from .memory import mean_square
from .peers import NETS, build, check

ROUNDS = 12


def step_of(model: nn.Module, x: Tensor, training: bool) -> Callable[[], None]:
    """A function that runs one step to its end."""
    model.train(training)

    def step() -> None:
        if training:
            model.zero_grad()
            mean_square(model(x)).backward()
        else:
            with torch.inference_mode():
                model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return step


@pytest.mark.parametrize(
    ("training", "efficient"),
    [(True, False), (True, True), (False, False)],
    ids=["training", "training, efficient", "inference"],
)
@pytest.mark.parametrize("net", NETS)
def test_speed(benchmark, request, report, device, net: str, training: bool, efficient: bool) -> None:
    check(net, device, efficient, training)
    pair = build(net, device, efficient)
    ours, peer = step_of(pair.ours, pair.x, training), step_of(pair.peer, pair.x, training)
    peer_times = []

    def time_peer() -> None:
        start = time.perf_counter()
        peer()
        peer_times.append(time.perf_counter() - start)

    benchmark.pedantic(ours, setup=time_peer, rounds=ROUNDS, warmup_rounds=2)
    if benchmark.disabled:
        return
    times = benchmark.stats.stats.data
    peer_times = peer_times[-len(times) :]
    ratio = statistics.median(peer_times) / statistics.median(times)
    ratios = [theirs / mine for theirs, mine in zip(peer_times, times, strict=True)]
    p20, *_, p80 = statistics.quantiles(ratios, n=5)
    benchmark.extra_info |= {"torchvision_s": peer_times, "ratio": ratio, "ratio_p20": p20, "ratio_p80": p80}
    per_second = len(pair.x) / statistics.median(times)
    report(f"{request.node.callspec.id:60} {per_second:8.1f} images/s  {ratio:5.2f}x  (p20-p80 {p20:.2f}-{p80:.2f})")
