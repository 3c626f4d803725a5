"""`pytest benchmarks/`: what to measure, the durations as pytest-benchmark's rows, a summary, and the results on disk.

A row passes when its variant was checked and timed, fails with the error if it was wrong or failed, and is skipped with
the reason if this machine cannot run it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from densenet_fast import backends

from . import machine, report, results
from .compare import Comparison, Effort, Workload, compare
from .subjects import Subject, net
from .variants import BASELINE, BY_NAME, Variant, named


class Settings(NamedTuple):
    model: str
    image: int
    batch: int
    device: torch.device
    dtype: torch.dtype
    effort: Effort
    peers: tuple[Variant, ...]

    def workload(self, subject: Subject, training: bool, batch: int | None = None) -> Workload:
        return Workload(subject, batch or self.batch, self.device, self.dtype, training)

    @property
    def brief(self) -> Effort:
        """For parts of a net and points of a curve, of which there are many."""
        return self.effort._replace(rounds=min(3, self.effort.rounds), seconds=0.0)

    @property
    def best(self) -> str:
        """The name of our variant that `backend="auto"` runs."""
        return backends.choose("auto", self.device, self.dtype)


SETTINGS = pytest.StashKey[Settings]()
BOOK = pytest.StashKey[results.Book]()
COMPARISONS = pytest.StashKey[dict[Any, Comparison]]()
WRITTEN = pytest.StashKey[list[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("densenet_fast")
    group.addoption("--device", default="cpu", help="device to measure (default: cpu)")
    group.addoption(
        "--model", default="densenet121", help="net, for instance densenet201 or bc-100-12 (default: densenet121)"
    )
    group.addoption("--image", type=int, help="height and width of the images (default: 224; bc: 32)")
    group.addoption("--batch", type=int, default=8, help="images in a step (default: 8)")
    group.addoption(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="half precision: autocast in training, weights and images in inference (default: float32)",
    )
    group.addoption(
        "--peers",
        default="uncompiled",
        help="variants to measure, names and patterns: 'all', 'native*,compile' (default: uncompiled, all but "
        "torch.compile's, which take minutes to compile)",
    )
    group.addoption("--rounds", type=int, default=5, help="quiet rounds to measure at least (default: 5)")
    group.addoption("--seconds", type=float, default=5, help="seconds to measure for at least (default: 5)")
    group.addoption(
        "--compile-limit", type=float, default=900, help="seconds for torch.compile in one comparison (default: 900)"
    )
    group.addoption(
        "--allocator",
        choices=("keep", "default"),
        default="keep",
        help="keep freed memory, so that page faults burden nobody, or leave glibc as it is (default: keep)",
    )
    group.addoption("--results", type=Path, default=results.ROOT, help="where the JSON files go")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers(names): the variants that a benchmark takes, of those asked for")
    option = config.option
    device = torch.device(option.device)
    if option.allocator == "keep":
        machine.keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # the shapes are fixed: every net may look for its fastest kernels
    if option.image is None:
        option.image = 32 if option.model.startswith("bc-") else 224
    try:
        net(option.model, option.image)
        peers = tuple(named(option.peers))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[SETTINGS] = Settings(
        option.model,
        option.image,
        option.batch,
        device,
        getattr(torch, option.dtype),
        Effort(option.rounds, option.seconds, option.compile_limit),
        peers,
    )
    names = ("model", "image", "batch", "dtype", "peers", "rounds", "seconds", "allocator")
    setting = f"{option.model}-{option.image}-{option.batch}-{option.dtype}"
    if option.allocator == "default":
        setting += "-default-allocator"
    config.stash[BOOK] = results.Book(
        option.results, machine.facts(device), setting, {name: getattr(option, name) for name in names}
    )
    config.stash[COMPARISONS] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`variant`: the peers asked for, of those that the function's `peers` mark names."""
    if "variant" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("peers")
        asked = metafunc.config.stash[SETTINGS].peers
        metafunc.parametrize("variant", [v.name for v in asked if mark is None or v.name in mark.args])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"))  # the peers' warnings are not ours to mend
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


class Clock:
    """A clock for pytest-benchmark that goes only when it is told: variants that take turns are measured together, and
    their rows show the durations afterwards."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    return request.config.stash[SETTINGS]


@pytest.fixture(scope="session")
def book(request: pytest.FixtureRequest) -> results.Book:
    return request.config.stash[BOOK]


@pytest.fixture
def show(benchmark: Any) -> Callable[..., None]:
    """Shows durations as the rows of a group, or skips or fails where there are none."""

    def show(group: str, durations: Sequence[float], missing: str | None = None, error: str | None = None) -> None:
        if missing is not None:
            pytest.skip(missing)
        if error is not None:
            pytest.fail(error, pytrace=False)
        benchmark.group = group
        left = iter(durations)
        benchmark.pedantic(CLOCK.advance, setup=lambda: ((next(left),), {}), rounds=len(durations))

    return show


@pytest.fixture
def turn(request: pytest.FixtureRequest, show: Any, book: results.Book, settings: Settings) -> Callable[..., None]:
    """Shows one variant's durations in a comparison; the first call for a workload measures all variants in turns."""
    comparisons = request.config.stash[COMPARISONS]

    def turn(
        group: str,
        workload: Workload,
        variant: str,
        phase: str,
        x: float | None = None,
        effort: Effort = settings.effort,
    ) -> None:
        key = (group, workload.subject.name, workload.batch, workload.training)
        if key not in comparisons:
            comparisons[key] = compare(workload, [BY_NAME[name] for name in _collected(request)], effort)
            book.add(group, workload, comparisons[key], x)
        outcome = comparisons[key].outcomes[variant]
        missing = outcome.missing
        if not outcome.error and not missing and phase not in outcome.seconds:
            missing = "one graph holds forward and backward"
        title = f"{group}: {workload.subject.name}, batch {workload.batch}, {phase}"
        show(title, outcome.seconds.get(phase, []), missing, outcome.error)

    return turn


def _collected(request: pytest.FixtureRequest) -> list[str]:
    """The variants for which this test function was collected: what -k leaves, and the baseline."""
    function = request.node.originalname
    found = {item.callspec.params["variant"] for item in request.session.items if item.originalname == function}
    return [name for name in BY_NAME if name in found | {BASELINE}]


def pytest_sessionfinish(session: pytest.Session) -> None:
    book = session.config.stash.get(BOOK, None)
    if book is not None and book.groups:
        session.config.stash[WRITTEN] = book.save()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if WRITTEN in config.stash:
        terminalreporter.section("densenet_fast and its peers")
        for contents in config.stash[BOOK].groups.values():
            terminalreporter.write(report.text(contents))
        terminalreporter.line("written: " + ", ".join(path.name for path in config.stash[WRITTEN]))
        terminalreporter.line(f"in {config.stash[BOOK].folder}; python -m benchmarks.report makes tables and pictures")
