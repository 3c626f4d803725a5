"""Memory of one training step, in bytes, from the allocator's own figures: the tool tests and benchmarks share.

The CPU allocator keeps no totals, but under the profiler it reports each allocation and each release; adding these up
gives the memory held at any moment. They are exact, so two measurements of one step agree to the byte.
"""

import gc
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler logs an error where a CUDA build finds no GPU

_BACKWARD = "benchmarks.memory: backward"


class StepMemory(NamedTuple):
    """Bytes beyond what was allocated before the step, so without parameters and input batch.

    live: what the forward leaves allocated: all that is kept for backward, and the output.
    peak: the most at any moment of forward and backward. Gradients are None before the step, so those of the
        parameters are part of it.
    """

    live: int
    peak: int


def mean_square(y: Tensor) -> Tensor:
    return y.square().mean()


def measure(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] = mean_square,
    call: Callable[[Tensor], Tensor] | None = None,
) -> StepMemory:
    """Memory of one training step `loss(model(x)).backward()` on x's device.

    Runs two steps, one of them to warm up: running statistics move twice, gradients are None at the end.

    Args:
        x: one batch of images [N, channels, H, W].
        loss: scalar from the model's output; it runs in the backward half of the step.
        call: what runs the model, if it is not the model itself: compiled, or under autocast.
    """
    call = model if call is None else call
    loss(call(x)).backward()
    model.zero_grad(set_to_none=True)
    gc.collect()  # garbage released during the step would count as negative memory
    step = _measure_cuda if x.is_cuda else _measure_cpu
    memory = step(call, x, loss)
    model.zero_grad(set_to_none=True)
    return memory


def _measure_cuda(call: Callable[[Tensor], Tensor], x: Tensor, loss: Callable[[Tensor], Tensor]) -> StepMemory:
    before = torch.cuda.memory_allocated(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    y = call(x)
    live = torch.cuda.memory_allocated(x.device) - before
    loss(y).backward()
    return StepMemory(live, torch.cuda.max_memory_allocated(x.device) - before)


def _measure_cpu(call: Callable[[Tensor], Tensor], x: Tensor, loss: Callable[[Tensor], Tensor]) -> StepMemory:
    with torch.autograd.profiler.profile(use_device=None, profile_memory=True) as profile:
        y = call(x)
        with torch.autograd.profiler.record_function(_BACKWARD):
            loss(y).backward()
    events = profile.kineto_results.events()
    backward = next(event.start_ns() for event in events if event.name() == _BACKWARD)
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = live = peak = 0
    for time, change in changes:
        held += change
        peak = max(peak, held)
        if time < backward:
            live = held
    return StepMemory(live, peak)
