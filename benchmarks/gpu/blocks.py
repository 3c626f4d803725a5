"""A dense block and its transition as nets run them: one operation forward and one backward where a backend has it.

Right means: output and all gradients together are off by at most twice what PyTorch's own layers are in the same dtype,
plus one unit of rounding, and the same bits both times.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from densenet_fast.functional import Norm, dense_stage
from tests.oracle import as_under_autocast, leaves_to, make_stage, parameters, require_grad, stage

from .runner import Facts
from .settings import Settings, Shape

NAME = "dense_block"
# What is frozen: the statistics of all norms; the first layer's weights. Or z is recomputed, or channels are dropped.
OPTIONS = (None, "efficient", "statistics", "weights", "dropout")
FEW = 3  # shapes of float16 and of the eager backend
SMALL = 1 << 16  # pixels times channels below which one seed's errors say little


def cases(settings: Settings, backend: str) -> Iterator[Facts]:
    for dtype in settings.dtypes(backend):
        few = backend == "eager" or dtype == torch.float16
        for i, shape in enumerate(settings.shapes[:FEW] if few else settings.shapes):
            for option in OPTIONS if i == 1 else OPTIONS[:1]:
                told = {"option": option} if option else {}
                name = str(dtype).removeprefix("torch.")
                yield {"backend": backend, "operation": NAME, "dtype": name, "shape": shape, **told}


Values = list[Tensor]
Run = Callable[[Tensor, tuple], Tensor]


def values(run: Run, x: Tensor, steps: tuple, cotangent: Tensor) -> Values:
    """The output, and the gradients of x and of every parameter that is not frozen."""
    x = x.clone().requires_grad_()
    wanted = [x, *(p for p in parameters(steps) if p.requires_grad)]
    with torch.enable_grad():
        y = run(x, steps)
    return [y.detach(), *torch.autograd.grad(y, wanted, cotangent.to(y.dtype))]


def check(device: torch.device, case: Facts) -> list[tuple[Values, Values, Values, Values]]:
    """For each seed what a backend computes, what it computes again, what PyTorch does, and what is exact."""
    dtype, option = getattr(torch, case["dtype"]), case.get("option")
    n, h, w, c, *_ = case["shape"]
    ours = partial(_ours, backend=case["backend"], efficient=option == "efficient")
    results = []
    for seed in range(3 if n * h * w * c < SMALL else 1):
        torch.manual_seed(seed)
        with torch.device(device):
            steps, exact = made(case["shape"], dtype, option)
            x = torch.randn(n, c, h, w).to(dtype, memory_format=torch.channels_last)
            cotangent = torch.randn(_stock(x.double(), exact).shape, dtype=torch.float64)
        runs = ((ours, x, steps), (ours, x, steps), (_stock, x, steps), (_stock, x.double(), exact))
        first, again, stock, right = (values(*run, cotangent) for run in runs)
        results.append((first, again, stock, right))
    return results


def step(device: torch.device, backend: str, shape: Shape, dtype: torch.dtype, option: str | None = None) -> None:
    """Forward and backward once."""
    n, h, w, c, *_ = shape
    with torch.device(device), torch.enable_grad():
        steps, _ = made(shape, dtype, option)
        _ours(torch.randn(n, c, h, w).to(dtype), steps, backend, option == "efficient").sum().backward()


def made(shape: Shape, dtype: torch.dtype, option: str | None) -> tuple[tuple, tuple]:
    """Two layers and a transition, and the same in float64."""
    *_, c, k, g = shape
    frozen, drop_rate = range(5 if option == "statistics" else 0), 0.2 if option == "dropout" else 0.0
    bottleneck = k // g
    steps = make_stage(c, (g, g), "transition", bottleneck=bottleneck, frozen=frozen, drop_rate=drop_rate)
    if dtype == torch.float32:
        steps = [decided(layer) for layer in steps[0]], decided(steps[1])
    steps = as_under_autocast(steps, dtype)
    both = require_grad(steps), require_grad(leaves_to(steps, torch.float64))
    if option == "weights":
        for (first, *_), _ in both:
            first.weight1.requires_grad_(False)
            first.weight2.requires_grad_(False)
    return both


def decided(step: Any) -> Any:
    """The step with norms behind which ReLU lets a channel pass everywhere or nowhere: in float32 the gradient of one
    value that rounds to the other side of zero outweighs all other errors, and chance decides whose value it is."""
    norms = {name: norm for name, norm in step._asdict().items() if isinstance(norm, Norm)}
    return step._replace(
        **{name: norm._replace(beta=10 * norm.beta.sign() + norm.beta) for name, norm in norms.items()}
    )


def _ours(x: Tensor, steps: tuple, backend: str, efficient: bool) -> Tensor:
    return dense_stage(x, *steps, backend=backend, efficient=efficient).y


def _stock(x: Tensor, steps: tuple) -> Tensor:
    return stage(x, *steps)
