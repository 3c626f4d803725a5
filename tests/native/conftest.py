"""Every test of kernels runs on every instruction set of this machine, those marked `entry`, about what comes before
the kernels, on the best alone; without the library none does."""

from collections.abc import Iterator

import pytest
import torch

from densenet_fast import backends
from densenet_fast.contract import Operations

CPU = torch.device("cpu")


def pytest_collection_modifyitems(items):
    reason = backends.why_unavailable("native", CPU)
    if reason is not None:
        for item in items:
            if "tests/native" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=reason))


def instruction_sets() -> list[str]:
    if backends.why_unavailable("native", CPU) is not None:
        return ["none"]
    from densenet_fast import _C

    return _C.instruction_sets()


def pytest_generate_tests(metafunc):
    sets = instruction_sets()
    if metafunc.definition.get_closest_marker("entry") or "natives" in metafunc.fixturenames:
        sets = sets[:1]
    metafunc.parametrize("instruction_set", sets, indirect=True)


@pytest.fixture(autouse=True)
def instruction_set(request):
    from densenet_fast import _C

    best = _C.instruction_set_in_use()
    _C.use_instruction_set(request.param)
    yield request.param
    _C.use_instruction_set(best)


@pytest.fixture
def native():
    return backends.operations("native", CPU)


@pytest.fixture
def natives(native):
    """For tests whose truth costs more than they: the operations on one instruction set after the other."""
    from densenet_fast import _C

    def on_each() -> Iterator[tuple[str, Operations]]:
        for name in instruction_sets():
            _C.use_instruction_set(name)
            yield name, native

    return on_each
