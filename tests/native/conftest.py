"""Every test of kernels runs on every instruction set of this machine, those marked `entry`, about what comes before
the kernels, on the best alone; without the library none does. Sets that differ from others in bfloat16, `*_bf16`, are
for rows of that dtype, and those with tiles, `*amx_bf16`, which differ in float32, too, also of that."""

from collections.abc import Iterator

import pytest
import torch

from densenet_fast import backends
from densenet_fast.contract import Operations

CPU = torch.device("cpu")


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if "tests/native" not in str(item.path) or _differs(item)]
    reason = backends.why_unavailable("native", CPU)
    if reason is not None:
        for item in items:
            if "tests/native" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=reason))


def _differs(item) -> bool:
    """Whether a test's instruction set has kernels of its own for the test's dtype."""
    parameters = item.callspec.params
    return _has_kernels(parameters["instruction_set"], parameters.get("dtype", torch.float32))


def _has_kernels(instruction_set: str, dtype: torch.dtype) -> bool:
    if dtype == torch.float32 and instruction_set.endswith("amx_bf16"):
        return True
    return dtype == torch.bfloat16 or not instruction_set.endswith("_bf16")


def instruction_sets() -> list[str]:
    if backends.why_unavailable("native", CPU) is not None:
        return ["none"]
    from densenet_fast import _C

    return _C.instruction_sets()


def pytest_generate_tests(metafunc):
    sets = instruction_sets()
    if metafunc.definition.get_closest_marker("entry") or "natives" in metafunc.fixturenames:
        sets = [name for name in sets if _has_kernels(name, torch.float32)][:1]
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
def natives(native, request):
    """For tests whose truth costs more than they: the operations on one instruction set after the other."""
    from densenet_fast import _C

    def on_each() -> Iterator[tuple[str, Operations]]:
        dtype = request.node.callspec.params.get("dtype", torch.float32)
        for name in [name for name in instruction_sets() if _has_kernels(name, dtype)]:
            _C.use_instruction_set(name)
            yield name, native

    return on_each
