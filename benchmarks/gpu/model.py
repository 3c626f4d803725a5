"""Whole training steps: against stock layers in higher precision, twice, with dropout, recomputed, in a CUDA graph."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..compare import Reference, Results, Workload, build, errors
from ..memory import mean_square
from ..subjects import net
from ..variants import BY_NAME
from .runner import Facts, Job, Run, work_through
from .settings import Settings

CHECKS = ("step", "twice", "efficient", "dropout", "graph")
DROP_RATE = 0.2


def model(run: Run) -> None:
    settings = run.settings
    jobs = [
        Job("model", list(cases(run, name, backend)), partial(start, settings, name, image, batch))
        for name, image, batch in settings.checked
        for backend in settings.backends
    ]
    work_through(run, jobs, max(1, settings.parallel // 2), silence=2 * settings.silence)


def cases(run: Run, name: str, backend: str) -> Iterator[Facts]:
    for what in CHECKS:
        if what == "graph" and not run.settings.on_gpu:
            run.journal.line("model", net=name, backend=backend, what=what, verdict="not run", why="only on a GPU")
        else:
            yield {"net": name, "backend": backend, "what": what}


def start(settings: Settings, name: str, image: int, batch: int) -> Callable[[Facts], Facts]:
    work = Workload(net(name, image), batch, settings.device, settings.dtype, True)
    torch.backends.cudnn.deterministic = True
    reference = Reference(work)

    def measure(case: Facts) -> Facts:
        backend, what = case["backend"], case["what"]
        if what == "twice":
            step = build(BY_NAME[backend], work)
            return _verdict(_differ(step.results(), step.results()))
        if what == "dropout":
            return _dropout(work, backend)
        variant = BY_NAME[backend if what == "step" else f"{backend}-{what}"]
        return _verdict(_off(reference.check(variant, build(variant, work))))

    return measure


def _verdict(wrong: str) -> Facts:
    return {"verdict": "wrong", "error": wrong} if wrong else {"verdict": "right"}


def _off(check: dict[str, tuple[float, float]]) -> str:
    return "; ".join(
        f"{name} errs by {e:.1e}, allowed {limit:.1e}" for name, (e, limit) in check.items() if not e <= limit
    )


def _differ(first: Results, again: Results) -> str:
    return "; ".join(f"{name}: two runs differ" for name in first if not torch.equal(first[name], again[name]))


def _dropout(work: Workload, backend: str) -> Facts:
    """The masks are a function of the seeds alone: every backend drops the same, in every precision."""
    half = work.dtype != torch.float32
    exact = dropped(work, "eager", torch.float32 if half else torch.float64, autocast=False)
    stock = errors(dropped(work, "eager", torch.float32, autocast=half), exact)
    ours = dropped(work, backend, torch.float32, autocast=half)
    off = errors(ours, exact)
    eps = torch.finfo(work.dtype).eps
    wrong = _off({name: (off[name], 2 * stock[name] + eps) for name in off})
    return _verdict(wrong or _differ(ours, dropped(work, backend, torch.float32, autocast=half)))


def dropped(work: Workload, backend: str, dtype: torch.dtype, autocast: bool) -> Results:
    """Output and gradients of one step with dropout, from one seed."""
    torch.manual_seed(0)
    module = with_dropout(work, backend).to(work.device, dtype, memory_format=torch.channels_last).train()
    x = torch.randn(work.batch, *work.subject.shape).to(work.device, dtype, memory_format=torch.channels_last)
    torch.manual_seed(1)
    with torch.autocast(work.device.type, work.dtype, enabled=autocast):
        y: Tensor = module(x)
    mean_square(y).backward()
    return {"output": y.detach(), "gradients": torch.cat([p.grad.flatten() for p in module.parameters()])}  # type: ignore[union-attr]


def with_dropout(work: Workload, backend: str) -> nn.Module:
    module = work.subject.ours(backend, False)
    for layer in module.modules():
        if hasattr(layer, "drop_rate"):
            layer.drop_rate = DROP_RATE
    return module
