"""Every test starts from one seed, and memory that is not initialised holds NaN: reading it cannot go unnoticed.

DENSENET_FAST_REQUIRE=triton,native: the run fails at once unless these backends run on the best device here, and a
test that is skipped fails. For machines that must prove something, such as one with a GPU.

Without a GPU, Triton's kernels are interpreted. Triton decides that when it is imported, so it is settled here.

--thorough: also the rows of tables that are marked so: more of a kind of which other rows run always (rows.py).
"""

import gc
import os
from importlib.util import find_spec

# Read when torch loads OpenMP. A thread that waits for others sleeps: spinning, two processes on two cores are seven
# times slower than one. Processes that run beside each other (pytest-xdist) share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(2, len(os.sched_getaffinity(0)) // workers)))

import pytest
import torch

from densenet_fast import backends

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it where algorithms must be deterministic
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton") is not None:
        import triton  # noqa: F401
os.environ.setdefault("DENSENET_FAST_QUIET", "1")  # a run without the library is told by what is skipped
STAND_INS = {"_machine", "executed"}  # fixtures: the CUDA kernels and Triton's, as PTX
REQUIRED = [name for name in os.environ.get("DENSENET_FAST_REQUIRE", "").split(",") if name]


def pytest_addoption(parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also the rows that are marked thorough: twice the time")


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "thorough: more of what other rows test; runs under --thorough")
    config.addinivalue_line("markers", "without_gpu: with a stand-in for a GPU, or about having none")
    config.addinivalue_line("markers", "entry: of tests/native, about what comes before the kernels")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items) -> None:
    """Where there is a GPU, its stand-ins prove nothing that it does not, and take its time."""

    def is_left_out(item) -> bool:
        if item.get_closest_marker("thorough") and not config.getoption("thorough"):
            return True
        stand_in = item.get_closest_marker("without_gpu") or STAND_INS & {*item.fixturenames}
        return bool(stand_in) and torch.cuda.is_available()

    run, left_out = [], []
    for item in items:
        (left_out if is_left_out(item) else run).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = run


def pytest_collection_finish() -> None:
    """What is there now stays there: full collections, which every measure of memory makes, pass it by."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    if torch.cuda.is_available():
        return "GPU: there is one, so tests on stand-ins for it, marked without_gpu, are left out"
    return "GPU: there is none, so tests run on stand-ins for it, marked without_gpu"


def pytest_sessionstart() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in REQUIRED:
        if name not in backends.PREFERENCE:
            raise pytest.UsageError(f"DENSENET_FAST_REQUIRE: got {name!r}, expected {', '.join(backends.PREFERENCE)}")
        reason = backends.why_unavailable(name, device)
        if reason is not None:
            raise pytest.UsageError(f"DENSENET_FAST_REQUIRE: backend {name!r} is not available on {device}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if REQUIRED and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under DENSENET_FAST_REQUIRE: {report.longrepr[2]}"
    return report


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def _machine():
    from .cuda.device import Machine, build

    return Machine(build())


@pytest.fixture
def machine(_machine):
    """The CUDA kernels on a GPU of PTX."""
    _machine.reset()
    yield _machine
    _machine.reset()
