"""Every backend on every device of this machine: sums of small integers are exact, and two runs are bitwise equal.

Small shapes, so that they can also run under compute-sanitizer.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densenet_fast import DenseNet, backends

from .calls import NAMES, Geometry, make
from .oracle import error

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16]
RUNNING = [
    pytest.param(device, backend, dtype, id=f"{device}-{backend}-{str(dtype).removeprefix('torch.')}")
    for device in DEVICES
    for backend in backends.PREFERENCE
    for dtype in DTYPES
    if backends.why_unavailable(backend, device, dtype) is None
    and (backend, device.type) != ("triton", "cpu")  # interpreted: tests/triton
]
IN_FLOAT32 = [p for p in RUNNING if torch.float32 in p.values]
# Channels that fill no vector, no tile, and more than one of each; odd images and one pixel.
GEOMETRIES = [Geometry(2, 5, 7, 24, 16, 4), Geometry(3, 8, 8, 37, 48, 12), Geometry(1, 2, 2, 66, 128, 32)]
# Results that are quotients: means, variances, corrections, gradients of gamma; of a norm, of its scale.
DIVIDED = ("stats", "correction", "dgamma", "gamma")

running = pytest.mark.parametrize(("device", "backend", "dtype"), IN_FLOAT32)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "x".join(map(str, g)))


def called(name, geometry, device, backend, dtype, **options):
    """Results of an operation by name."""
    call = make(name, geometry, dtype, **options).copy(device=device)
    return call.on(backends.operations(backend, device, dtype)).results()


@pytest.mark.parametrize(("device", "backend", "dtype"), RUNNING)
@pytest.mark.parametrize("efficient", [False, True])
def test_two_training_steps_are_bitwise_equal(device, backend, dtype, efficient):
    x = torch.randn(3, 3, 32, 32, device=device, dtype=dtype)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        model = DenseNet(12, (3, 3), drop_rate=0.2, efficient=efficient, backend=backend).to(device, dtype)
        y = model(x)
        y.square().mean().backward()
        results.append([y, *(p.grad for p in model.parameters()), *model.buffers()])
    assert all(map(torch.equal, *results))


@pytest.mark.skipif(
    backends.why_unavailable("native", torch.device("cpu")) is not None, reason="the compiled library was not built"
)
def test_the_first_call_of_a_process_gives_the_bits_of_every_later_one():
    """PyTorch sets its threads up when they first ask; what an operation divides must not depend on that."""
    program = """
import sys, torch
from densenet_fast import backends
from tests.native.cases import Geometry, applies, make, run
operations = backends.operations("native", torch.device("cpu"))
torch.manual_seed(0)
differ = []
for geometry in (Geometry(1, 6, 5, 301, 160, 40), Geometry(2, 1, 1, 30, 96, 24)):
    for name, operation in vars(operations).items():
        if not name.startswith("dense_block") and applies(name, geometry):
            case = make(name, geometry)
            first, again = (run(operation, case)[0] for _ in range(2))
            differ += [name] if not all(map(torch.equal, first, again)) else []
sys.exit(" ".join(differ) or 0)
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
