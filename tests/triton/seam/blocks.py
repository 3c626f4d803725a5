"""A block of two layers: for other tensors than it was planned for, while another thread plans; and single kernels."""

import sys
import threading
from collections.abc import Iterator
from unittest.mock import patch

import torch
from torch.profiler import profile
from triton import knobs

from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import launch as path
from densenet_fast.backends.triton import plan
from densenet_fast.contract.block import TENSORS
from tools.gpucheck.driver import Launched

from ... import blocks as memory
from . import DRIVER, differences, expected, flat

SHAPE = memory.Shape(2, 4, 4, 64, (128, 128), (32, 32))


class Block:
    """Two layers in bfloat16 with all their tensors, a gamma of both one tensor if `tied`, the buffers `begin` channels
    further behind the beginning of a pixel."""

    def __init__(self, tied: bool = False, begin: int = 0, eps: float = 1e-5):
        case = memory.make(SHAPE, torch.bfloat16, drop_rate=0.2, room=16)
        last, second = torch.channels_last, TENSORS.index("gamma2")
        tensors = [
            t.contiguous(memory_format=last) if t is not None and t.dim() == 4 else t for t in case.block.tensors
        ]
        if tied:
            tensors[len(TENSORS) + second] = tensors[second]
        case.block = case.block._replace(tensors=tensors, numbers=[eps, eps, 0.2] * 2)
        case.x, case.g = (t.as_strided(t.shape, t.stride(), t.storage_offset() + begin) for t in (case.x, case.g))
        self.case = case

    def step(self) -> None:
        operations.block_fwd(*self.case.forward())
        operations.block_bwd(*self.case.backward())

    def has(self, address: int) -> bool:
        """Whether an address is in one of the block's own tensors."""
        return any(_reached({address}, t) for _, t in self.case.parts())


def _span(t: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its end."""
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return (1 + last) * t.itemsize if t.numel() else 0


def addresses(launch: path.Launch, launched: Launched) -> Iterator[int]:
    """Those that the driver got."""
    kinds = [kind for _, kind in flat(launch.arguments.values(), launch.specialization)]
    for kind, parameter in zip(kinds, launched.parameters, strict=False):
        if kind.startswith("*"):
            yield int.from_bytes(parameter, "little")


def block_findings(one: Block) -> list[str]:
    """A step's launches against their arguments, and against the memory that it was given."""
    DRIVER.forget()
    with path.recorded() as launches:
        one.step()
    launched = DRIVER.launches()
    found = differences(launched, [expected(launch, 0) for launch in launches])
    reached = {address for pair in zip(launches, launched, strict=False) for address in addresses(*pair)}
    return found + [f"nothing in {name}" for name, t in one.case.parts() if t.numel() and not _reached(reached, t)]


def _reached(by: set[int], t: torch.Tensor) -> bool:
    return any(0 <= address - t.data_ptr() < _span(t) for address in by)


def blocks() -> dict[str, list[str]]:
    found = {}
    plan.forget()
    made = {"tied": Block(tied=True), "untied": Block(), "shifted": Block(begin=4), "another eps": Block(eps=1e-3)}
    for name in ("tied", "untied", "shifted", "untied", "another eps"):
        found.setdefault(f"a block, {name}", []).extend(block_findings(made[name]))
    plans = plan._plan.cache_info().misses  # which tensors are one tensor is not looked at
    found["plans"] = [f"{plans} plans, expected forward and backward of three"] * (plans != 2 * 3)
    found["variants"] = variants()
    found["threads"] = threads()
    found["filled"] = filled()
    found["hooked"] = hooked(made["untied"])
    plan.forget()
    with patch.object(path, "LAUNCHER_IS_KNOWN", False):  # another Triton
        found["an unknown launcher"] = block_findings(made["untied"])
    plan.forget()
    return found


def hooked(one: Block) -> list[str]:
    """Hooks hear of every launch, whose way through them is another."""
    heard: list[str] = []
    begin, end = (lambda metadata: heard.append(metadata.get()["name"])), (lambda metadata: heard.append("end"))
    knobs.runtime.launch_enter_hook.add(begin)
    knobs.runtime.launch_exit_hook.add(end)
    try:
        found = block_findings(one)
    finally:
        knobs.runtime.launch_enter_hook.remove(begin)
        knobs.runtime.launch_exit_hook.remove(end)
    names = [name for launched in DRIVER.launches() for name in (launched.kernel, "end")]
    return found + [f"heard of {len(heard) // 2} launches, expected {len(names) // 2}"] * (heard != names)


def filled() -> list[str]:
    """Scratch memory is not filled although algorithms must be deterministic."""
    one, sizes, get = Block(), [], plan.Plan._uninitialized

    def noted(self, device):
        sizes.append(self.scratch)
        return get(self, device)

    torch.use_deterministic_algorithms(True)
    with patch.object(plan.Plan, "_uninitialized", noted), profile(record_shapes=True, acc_events=True) as profiled:
        one.step()
        torch.empty(7)
    torch.use_deterministic_algorithms(False)
    found = [e.input_shapes[0] for e in profiled.events() if e.name == "aten::fill_"]
    return [f"{size} bytes filled" for size in sizes if [size] in found] + ["nothing filled"] * (not found)


def variants() -> list[str]:
    """Each variant is compiled and loaded once for all sizes; 4 channels behind a pixel's beginning are another."""
    plan.forget()
    path.compile_variant.cache_clear()
    DRIVER.forget()
    for batch, begin in ((2, 0), (3, 0), (3, 8), (3, 4)):
        x = torch.randn(batch, 112, 5, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        operations.channel_stats(x[:, begin : begin + 96], torch.empty(2, 96))
    mean, var = ([torch.ones(5) for _ in range(3)] for _ in range(2))
    operations.update_running_stats(mean, var, [], torch.ones(2, 8), [0] * 3, 9, [0.1] * 3)
    launched, loaded = len(DRIVER.launches()), DRIVER.calls().count("cuModuleLoadData")
    return [] if (launched, loaded) == (9, 4) else [f"{launched} launches of {loaded} kernels, expected 9 of 4"]


def threads() -> list[str]:
    """Plans are made in one thread while another launches: neither launches for the other."""
    sys.setswitchinterval(1e-6)
    pair = Block(), Block()

    def planning() -> None:
        for _ in range(20):
            plan.forget()
            pair[0].step()

    def launching() -> None:
        for _ in range(50):
            pair[1].step()

    with path.recorded() as launches:
        pair[0].step()
    DRIVER.forget()
    both = [threading.Thread(target=planning), threading.Thread(target=launching)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    sys.setswitchinterval(5e-3)
    found = []
    for thread, stranger, steps in zip(both, reversed(pair), (20, 50), strict=True):
        launched = [entry for entry in DRIVER.launches() if entry.thread == thread.ident]
        if len(launched) != steps * len(launches):
            found.append(f"{len(launched)} launches, expected {steps * len(launches)}")
            continue
        for launch, got in zip(launches * steps, launched, strict=True):
            if got.kernel != launch.kernel.__name__:
                found.append(f"{got.kernel}, expected {launch.kernel.__name__}")
            elif any(map(stranger.has, addresses(launch, got))):
                found.append(f"{got.kernel}: memory of the other thread")
    return found
