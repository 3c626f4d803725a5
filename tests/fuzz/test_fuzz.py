"""Some seconds of fuzzing from fixed seeds. The long run, and what a failing case prints: tests/fuzz/__main__.py."""

import pytest
import torch

from densenet_fast import backends

from .search import search

EXAMPLES = {"eager": 75, "native": 60, "triton": 12}  # about 6 seconds each


@pytest.fixture(autouse=True)
def _one_thread():
    """Of such small tensors several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["eager", "native", pytest.param("triton", marks=pytest.mark.without_gpu)])
def test_ours_does_what_stock_layers_do(backend, monkeypatch):
    reason = backends.why_unavailable(backend, torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    if backend == "triton":
        from tools.gpucheck.triton import interpreter

        interpreter.repair()
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    search(backend, EXAMPLES[backend], 1)
