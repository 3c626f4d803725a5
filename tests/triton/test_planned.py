"""The launches planned for a net are those of its steps."""

import copy

import pytest
import torch

from benchmarks.planned import planned
from benchmarks.subjects import net
from densenet_fast import backends
from densenet_fast.backends.triton.launch import Device, recorded
from densenet_fast.backends.triton.precompile import Variant

from .conftest import DEVICE

H200 = Device(90, 132)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planned_step_is_what_runs(dtype):
    """Training under autocast and inference in the dtype itself: kernels, specialisations, warps and stages."""
    subject = net("bc-10-4", 8)
    model = subject.ours("triton", False).to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(2, *subject.shape, device=DEVICE).contiguous(memory_format=torch.channels_last)
    operations = backends.operations
    expected = planned("bc-10-4", 8, 2, dtype, H200)
    assert backends.operations is operations
    with recorded(H200) as launches:
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            y = model(x)
        y.float().sum().backward()
        with torch.no_grad():
            copy.deepcopy(model).eval().to(dtype)(x.to(dtype))
    assert len(launches) == len(expected) > 40
    assert {Variant.of(launch, 90) for launch in launches} == {Variant.of(launch, 90) for launch in expected}
