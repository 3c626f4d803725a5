"""A block of two layers: from its plan and layer by layer, for other tensors, while another thread plans."""

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import patch

import torch
from densenet_fast.buffer import Buffer, Gradient, allocate
from densenet_fast.steps import flatten
from torch.profiler import profile

from densenet_fast import block
from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import batch_norm, bn_relu_conv1x1, plan
from densenet_fast.backends.triton import launch as path
from tools.gpucheck.driver import Launched

from ...oracle import as_under_autocast, make_stage
from . import DRIVER, differences, expected, flat, without_addresses

WHOLE = SimpleNamespace(**vars(operations))
SINGLE = SimpleNamespace(**{name: f for name, f in vars(operations).items() if not name.startswith("dense_block")})


class Block:
    """Two layers in bfloat16 with all their tensors, their first gamma one tensor if `tied`."""

    def __init__(self, tied: bool = False, begin: int = 0, eps: float = 1e-5):
        layers, _ = as_under_autocast(make_stage(64, (32, 32), drop_rate=0.2), torch.bfloat16)
        gamma = layers[0].norm2.gamma
        layers = [s._replace(norm2=s.norm2._replace(gamma=gamma if tied else s.norm2.gamma, eps=eps)) for s in layers]
        self.layers = [s._replace(weight2=s.weight2.contiguous(memory_format=torch.channels_last)) for s in layers]
        wide = torch.empty(0, dtype=torch.bfloat16)
        x, g = (allocate((2, 144, 4, 4), wide)[:, begin : begin + 128] for _ in range(2))
        self.buffer = Buffer(x, *torch.zeros(2, 128).unbind(), True)
        self.gradient = Gradient(self.buffer, g)

    def step(self, ops) -> None:
        kept = block.forward(ops, self.buffer, self.layers, 64, keep_z=True, infer=False)
        needs = [layer._replace(weight1=True, weight2=True) for layer in self.layers]
        block.backward(ops, self.buffer, self.gradient, self.layers, 64, kept, True, needs)

    def place(self, address: int) -> tuple[str, int] | None:
        """Which of the block's own tensors an address is in, and where."""
        leaves = {str(i): leaf for i, leaf in enumerate(flatten(self.layers)) if isinstance(leaf, torch.Tensor)}
        of_x = {"x": self.buffer.x, "mean": self.buffer.mean, "var": self.buffer.var}
        for name, x in (of_x | {"g": self.gradient.g, "a": self.gradient.a, "b": self.gradient.b} | leaves).items():
            last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
            if 0 <= address - x.data_ptr() <= last * x.itemsize:
                return name, address - x.data_ptr()
        return None


def pointers(launch: path.Launch, launched: Launched) -> Iterator[tuple[str, int]]:
    """(position, address) of each address that the driver got."""
    kinds = [kind for _, kind in flat(launch.arguments.values(), launch.specialization)]
    for i, (kind, parameter) in enumerate(zip(kinds, launched.parameters, strict=False)):
        if kind.startswith("*"):
            yield f"{launched.kernel}, parameter {i}", int.from_bytes(parameter, "little")


def plan_findings(one: Block) -> list[str]:
    """What the block's plan launches against its layers one by one: the same addresses in the block's own tensors, and
    scratch memory that is written and read by the same launches."""
    DRIVER.forget()
    with path.recorded() as launches:  # whose tensors live on, each at an address of its own
        one.step(SINGLE)
    each = DRIVER.launches()
    DRIVER.forget()
    one.step(WHOLE)
    whole = DRIVER.launches()
    if len(whole) != len(each):
        return [f"{len(whole)} launches, expected {len(each)}"]
    found = differences(each, [expected(launch, 0) for launch in launches])
    found += differences(without_addresses(launches, whole), without_addresses(launches, each))
    planned: dict[int, int] = {}  # by an address of the layers, the plan's
    for launch, a, b in zip(launches, each, whole, strict=True):
        inverse: dict[int, int] = {}
        for (where, address), (_, other) in zip(pointers(launch, a), pointers(launch, b), strict=True):
            if one.place(address) != one.place(other):
                found.append(f"{where}: {one.place(other)}, expected {one.place(address)}")
            if planned.setdefault(address, other) != other or inverse.setdefault(other, address) != address:
                found.append(f"{where}: scratch memory of something else")
    return found


def blocks() -> dict[str, list[str]]:
    found = {}
    plan._plan.cache_clear()
    made = {"tied": Block(tied=True), "untied": Block(), "shifted": Block(begin=4), "another eps": Block(eps=1e-3)}
    for name in ("tied", "untied", "shifted", "untied", "another eps"):
        found.setdefault(f"a block, {name}", []).extend(plan_findings(made[name]))
    plans = plan._plan.cache_info().misses  # which tensors are one tensor is not looked at
    found["plans"] = [f"{plans} plans, expected forward and backward of three"] * (plans != 2 * 3)
    found["variants"] = variants()
    found["threads"] = threads()
    found["filled"] = filled()
    return found


def filled() -> list[str]:
    """Scratch memory is not filled although algorithms must be deterministic."""
    one, sizes, get = Block(), [], plan.Plan._uninitialized

    def noted(self, place):
        sizes.append(self._scratch)
        return get(self, place)

    torch.use_deterministic_algorithms(True)
    with patch.object(plan.Plan, "_uninitialized", noted), profile(record_shapes=True, acc_events=True) as profiled:
        one.step(WHOLE)
    torch.use_deterministic_algorithms(False)
    found = [e.input_shapes[0] for e in profiled.events() if e.name == "aten::fill_"]
    return [f"{size} bytes filled" for size in sizes if [size] in found] + ["nothing filled"] * (not found)


def variants() -> list[str]:
    """Each variant is compiled and loaded once for all sizes; 4 channels behind a pixel's beginning are another."""
    path._variants.clear()
    path.compile_variant.cache_clear()
    DRIVER.forget()
    vector, weight = torch.ones(96), torch.randn(64, 96, 1, 1, dtype=torch.bfloat16)
    for batch, begin in ((2, 0), (3, 0), (3, 8), (3, 4)):
        x = torch.randn(batch, 112, 5, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        bn_relu_conv1x1.bn_relu_conv1x1_fwd(x[:, begin : begin + 96], vector, vector, vector, None, 1e-5, weight, True)
    norms = [torch.ones(5) for _ in range(3)]
    batch_norm.update_running_stats(norms, norms, norms, norms, [9] * 3, [0.1] * 3)
    launched, loaded = len(DRIVER.launches()), DRIVER.calls().count("cuModuleLoadData")
    return [] if (launched, loaded) == (9, 4) else [f"{launched} launches of {loaded} kernels, expected 9 of 4"]


def threads() -> list[str]:
    """Plans are made in one thread while another launches: neither launches for the other."""
    sys.setswitchinterval(1e-6)
    pair = Block(), Block()

    def planning() -> None:
        for _ in range(20):
            plan._plan.cache_clear()
            pair[0].step(WHOLE)

    def launching() -> None:
        for _ in range(50):
            pair[1].step(SINGLE)

    with path.recorded() as launches:
        pair[0].step(SINGLE)
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
            addresses = [address for _, address in pointers(launch, got)]
            if got.kernel != launch.kernel.__name__:
                found.append(f"{got.kernel}, expected {launch.kernel.__name__}")
            elif any(map(stranger.place, addresses)):
                found.append(f"{got.kernel}: memory of the other thread")
    return found
