<<<<<<< HEAD
"""Every test here runs on every instruction set of this machine; without the library none does."""

from collections.abc import Iterator
=======
"""Every test of kernels runs once per instruction set of this machine, those marked `entry`, about what comes before
the kernels, on the best alone; without the library none does."""
>>>>>>> w-gpucheck

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


<<<<<<< HEAD
def on_each() -> Iterator[tuple[str, Operations]]:
    """The native operations on one instruction set after the other, for tests whose truth costs more than they."""
    from densenet_fast import _C

    for name in instruction_sets():
        _C.use_instruction_set(name)
        yield name, backends.operations("native", CPU)


@pytest.fixture(autouse=True)
def best_afterwards():
    yield
    from densenet_fast import _C

    _C.use_instruction_set(_C.instruction_sets()[0])


@pytest.fixture(params=instruction_sets())
=======
def pytest_generate_tests(metafunc):
    sets = instruction_sets()
    if metafunc.definition.get_closest_marker("entry"):
        sets = sets[:1]
    metafunc.parametrize("instruction_set", sets, indirect=True)


@pytest.fixture(autouse=True)
>>>>>>> w-gpucheck
def instruction_set(request):
    from densenet_fast import _C

    _C.use_instruction_set(request.param)
    return request.param


@pytest.fixture
def native(instruction_set):
    return backends.operations("native", CPU)
