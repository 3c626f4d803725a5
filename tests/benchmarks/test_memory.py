"""benchmarks/memory.py, the tool behind every memory figure, on nets whose bytes can be counted by hand."""

import torch
from torch import nn

from benchmarks.memory import StepMemory, measure

FLOAT = 4


def test_live_is_what_the_forward_keeps() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
    # The linear layer's output is released: ReLU keeps its own output, which is the model's.
    assert measure(model, torch.randn(4, 8)).live == 4 * 16 * FLOAT


def test_peak_holds_gradients_and_transients() -> None:
    model = nn.Linear(8, 16, bias=False)
    # At the end of backward: the output, the loss and its gradient, dy, and the weight's gradient.
    memory = measure(model, torch.randn(4, 8), loss=torch.sum)
    assert memory.live == 4 * 16 * FLOAT
    assert memory.peak >= memory.live + 8 * 16 * FLOAT


def test_two_measurements_are_equal_and_leave_no_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(2, 1, 9, 9)
    first = measure(model, x)
    assert isinstance(first, StepMemory)
    assert measure(model, x) == first
    assert all(p.grad is None for p in model.parameters())
