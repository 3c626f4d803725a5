"""Every test of kernels runs once per instruction set of this machine, those marked `entry`, about what comes before
the kernels, on the best alone; without the library none does."""

import pytest
import torch

from densenet_fast import backends

CPU = torch.device("cpu")


def pytest_collection_modifyitems(items):
    reason = backends.why_unavailable("native", CPU)
    if reason is not None:
        for item in items:
            if "tests/native" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=reason))


def instruction_sets():
    if backends.why_unavailable("native", CPU) is not None:
        return ["none"]
    from densenet_fast import _C

    return _C.instruction_sets()


def pytest_generate_tests(metafunc):
    sets = instruction_sets()
    if metafunc.definition.get_closest_marker("entry"):
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
def eager():
    return backends.operations("eager", CPU)
