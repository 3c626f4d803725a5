"""Scratch memory of a block: what its plans ask for, beside what memory.py counts, and what is allocated."""

import pytest
import torch

from densenet_fast.backends.triton import plan
from densenet_fast.memory import scratch as estimate
from densenet_fast.memory.stage import Stage

from . import plans
from .plans import DEVICES
from .test_block import SHAPES, block, passed


@pytest.fixture
def scratch(monkeypatch):
    """Bytes of scratch memory of a block's forward and backward, batch 256, bf16, growth 32."""
    found = {}
    monkeypatch.setattr(plan.Plan, "run", lambda self, *_: found.update({self.operation: self.scratch}))

    def of(size, channels, layers, architecture=90, efficient=False):
        net = plans.Net(256, size, channels, 32, None, layers=layers)
        plans.step(net, DEVICES[architecture], plans.FORMS["bf16"], True, efficient)
        return found["block_fwd"], found["block_bwd"]

    return of


def test_scratch_memory_is_that_of_the_largest_layer(scratch):
    """For the first block of DenseNet-121: the figure of docs/internals/triton.md."""
    forward, backward = scratch(56, 64, 6)
    assert (round(forward / 1e6), round(backward / 1e6)) == (7, 231)
    assert (forward, backward) == tuple(map(max, *(scratch(56, channels, 1) for channels in range(64, 225, 32))))


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("architecture", DEVICES)
@pytest.mark.parametrize(("size", "channels", "layers"), [(56, 64, 6), (28, 128, 12), (14, 256, 24), (7, 512, 16)])
def test_little_scratch_memory_beside_z(scratch, size, channels, layers, architecture, efficient):
    """Beside the gradient of z, and z where it is recomputed, which `memory.Step` counts. Blocks of DenseNet-121."""
    stage = Stage("", 256, (size, size), channels, ((128, 32),) * layers, "head", 0, 0, 0, torch.bfloat16)
    counted = estimate(stage, "triton", efficient)
    _, backward = scratch(size, channels, layers, architecture, efficient)
    assert counted == 256 * size**2 * 4 * 32 * 2 * (1 + efficient)
    assert counted < backward <= counted + 30e6


@pytest.mark.without_gpu
def test_planned_scratch_memory_is_what_is_allocated(triton, monkeypatch):
    """It, and nothing else, where no weight is copied."""
    case = block(SHAPES["aligned"]).without("z", "u")
    tensors = [
        t.contiguous(memory_format=torch.channels_last) if t is not None and t.dim() == 4 else t
        for t in case.block.tensors
    ]
    case.block = case.block._replace(tensors=tensors)
    run = plan.Plan.run
    planned = []
    monkeypatch.setattr(plan.Plan, "run", lambda self, *of: (planned.append(self.scratch), run(self, *of)))
    passed(triton, case)  # planned, and what is kept of that is made
    copy = case.copy()
    with torch.autograd.profiler.profile(use_device=None, profile_memory=True) as profile:
        triton.block_fwd(*copy.forward())
        triton.block_bwd(*copy.backward())
    changes = [event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]"]
    assert [change for change in changes if change > 0] == planned[2:] == planned[:2]
