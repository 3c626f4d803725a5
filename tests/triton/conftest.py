"""Every kernel runs on the GPU where there is one, and in Triton's interpreter otherwise (tests/conftest.py)."""

import pytest
import torch

from densenet_fast import backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items):
    reason = backends.why_unavailable("triton", DEVICE)
    if reason is not None:
        for item in items:
            if "tests/triton" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _interpreter():
    if DEVICE.type == "cpu" and backends.why_unavailable("triton", DEVICE) is None:
        from tools.gpucheck.triton import interpreter

        interpreter.repair()


@pytest.fixture(autouse=True)
def _exact_float32():
    """PyTorch's default allows its convolutions TF32; a test that wants it says so."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def triton():
    return backends.operations("triton", DEVICE)


@pytest.fixture
def eager():
    return backends.operations("eager", DEVICE)


@pytest.fixture(scope="session")
def compiler():
    from tools.gpucheck.triton.compiler import Compiler

    compiler = Compiler()
    yield compiler
    compiler.close()


@pytest.fixture
def executed(compiler, monkeypatch):
    """Kernels launched in the test run as PTX, planned for sm_80; the list of them is in `done`."""
    from triton.runtime.interpreter import InterpretedFunction

    from densenet_fast.backends.triton.launch import recorded

    from .execution import A100, Executor

    executor = Executor(compiler)
    with recorded(A100) as launches:

        def start(kernel, grid):
            return lambda **arguments: executor.run(launches[-1])

        monkeypatch.setattr(InterpretedFunction, "__getitem__", start)
        yield executor
