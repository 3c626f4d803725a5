"""A minute of the fuzzer from fixed seeds. The long run, and what a case that fails prints: tests/fuzz/__main__.py."""

import pytest
import torch

from densenet_fast import backends

from .search import search

# Seconds for each: about 25, 25 and 10 on two cores.
EXAMPLES = {"eager": 400, "native": 350, "triton": 12}


@pytest.mark.parametrize("backend", ["eager", "native", pytest.param("triton", marks=pytest.mark.without_gpu)])
def test_ours_does_what_stock_layers_do(backend, monkeypatch):
    reason = backends.why_unavailable(backend, torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    if backend == "triton":
        from tests.triton import interpreter

        interpreter.repair()
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    search(backend, EXAMPLES[backend], 1)
