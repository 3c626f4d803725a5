"""What every backend must do alike. A test that takes `backend` runs on each of them; one that takes `shape` too, on
nets of several shapes, or on a stand-in for a GPU on one that has all kinds of stages. A test that takes `dtype`, a
narrow one, runs on the backends that compute in it."""

import pytest
import torch

from densenet_fast import backends

from .backends import BACKENDS
from .nets import SHAPES, SMALLEST, frozen_first_block, frozen_weights, no_longer_tracked

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
ON_THE_ENGINE = {frozen_first_block, frozen_weights, no_longer_tracked}


def pytest_collection_modifyitems(items):
    """Modes that kernels cannot tell from others run on stand-ins for a GPU, where a step takes seconds, as thorough
    rows: what they differ in is the work of PyTorch's engine and of stage/, which the other backends show."""
    for item in items:
        given = item.callspec.params if item.path.name == "test_modes.py" and hasattr(item, "callspec") else {}
        if given and given["backend"].stand_in and given.get("change") in ON_THE_ENGINE:
            item.add_marker(pytest.mark.thorough)


def pytest_generate_tests(metafunc):
    if "shape" in metafunc.fixturenames:
        pairs = [
            pytest.param(*backend.values, shape, id=f"{backend.id}-{name}", marks=backend.marks)
            for backend in BACKENDS
            for name, shape in (SMALLEST if backend.values[0].stand_in else SHAPES).items()
        ]
        metafunc.parametrize(("backend", "shape"), pairs, indirect=["backend"])
    elif "dtype" in metafunc.fixturenames:
        pairs = [
            pytest.param(*backend.values, dtype, id=f"{backend.id}-{name}", marks=backend.marks)
            for backend in BACKENDS
            for name, dtype in NARROW.items()
        ]
        metafunc.parametrize(("backend", "dtype"), pairs, indirect=["backend"])
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    # PyTorch's default allows its convolutions TF32.
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    if request.param.on_ptx:
        machine = request.getfixturevalue("machine")
        monkeypatch.setattr(backends, "operations", lambda *_: machine.operations)
    elif request.param.stand_in:
        from tools.gpucheck.triton import interpreter

        interpreter.repair()
    return request.param
