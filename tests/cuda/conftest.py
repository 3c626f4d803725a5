"""The CUDA kernels on a GPU of PTX (device.py); skipped without nvcc."""

import pytest

from .device import why_not


def pytest_collection_modifyitems(items):
    reason = why_not()
    if reason is not None:
        for item in items:
            if "_machine" in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def room(request):
    """Channels of NaN around every slice: with 8 of them rows may start on 16 bytes, with 2 on 4, with 3 on none."""
    return request.param
