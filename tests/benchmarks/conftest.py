"""Benchmarks, and the processes they start, never take interpreted kernels for a backend (tests/conftest.py)."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def _not_interpreted():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield
