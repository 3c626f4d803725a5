"""What every backend must do alike. A test that takes `backend` runs on each of them; one that takes `shape` too, on
nets of several shapes, or on a stand-in for a GPU on one that has all kinds of stages. A test that takes `dtype`, a
narrow one, runs on the backends that compute in it."""

import pytest
import torch

from densenet_fast import backends

from .backends import BACKENDS
from .nets import SHAPES, SMALLEST


def pytest_generate_tests(metafunc):
    if "shape" in metafunc.fixturenames:
        pairs = [
            pytest.param(*backend.values, shape, id=f"{backend.id}-{name}", marks=backend.marks)
            for backend in BACKENDS
            for name, shape in (SMALLEST if backend.values[0].stand_in else SHAPES).items()
        ]
        metafunc.parametrize(("backend", "shape"), pairs, indirect=["backend"])
    elif "backend" in metafunc.fixturenames:
        narrow = "dtype" in metafunc.fixturenames
        metafunc.parametrize("backend", [b for b in BACKENDS if not (narrow and b.id == "native")], indirect=True)


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
