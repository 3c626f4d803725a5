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

from . import reference
from .calls import NAMES, Geometry, error, make

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
DIVIDE = ("channel_stats", "update_running_stats", "head_fwd", "head_bwd", "layer_fwd", "layer_bwd")

running = pytest.mark.parametrize(("device", "backend", "dtype"), IN_FLOAT32)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "x".join(map(str, g)))


@running
@geometries
@pytest.mark.parametrize("name", [name for name in NAMES if name not in DIVIDE])
def test_sums_of_small_integers_are_exact(device, backend, dtype, name, geometry):
    """They have no rounding, so a difference is a wrong element, a lost one or one counted twice."""
    call = make(name, geometry, dtype, exact=True)
    exact = call.copy(torch.float64).on(reference).results()
    ours = call.copy(device=device).on(backends.operations(backend, device, dtype)).results()
    for result, right in exact.items():
        got = ours[result].cpu()
        if result.startswith(("stats", "correction")) or "gamma" in result:  # quotients
            assert error(got, right) < 1e-6, result
        else:
            assert torch.equal(got.double(), right), result


@running
@geometries
@pytest.mark.parametrize("name", NAMES)
def test_two_runs_of_an_operation_are_bitwise_equal(device, backend, dtype, name, geometry):
    call, operations = make(name, geometry, dtype), backends.operations(backend, device, dtype)
    first, second = (call.copy(device=device).on(operations).results() for _ in range(2))
    assert all(torch.equal(first[result], second[result]) for result in first)


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
from tests.calls import NAMES, Geometry, applies, make
operations = backends.operations("native", torch.device("cpu"))
torch.manual_seed(0)
differ = []
for geometry in (Geometry(1, 6, 5, 301, 160, 40), Geometry(2, 1, 1, 30, 96, 24)):
    for name in NAMES:
        if applies(name, geometry):
            call = make(name, geometry)
            first, again = (call.copy().on(operations).results() for _ in range(2))
            differ += [name] if not all(torch.equal(first[r], again[r]) for r in first) else []
sys.exit(" ".join(differ) or 0)
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("precision", "products"), [("highest", True), ("high", False), ("medium", False)])
def test_eager_takes_no_products_that_are_less_exact_than_convolutions(precision, products, monkeypatch):
    found, product = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **options: found.append(args) or product(*args, **options))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)  # bfloat16 for products of float32 where the processor has it
    try:
        DenseNet(4, (2, 2), backend="eager").features(torch.randn(2, 3, 32, 32)).sum().backward()
    finally:
        torch.set_float32_matmul_precision(before)
    assert bool(found) == products
