"""Launches through the compiled path on a machine without a GPU, with a driver that only notes them. Run as a process
of its own, without TRITON_INTERPRET; prints, as JSON, what the driver saw."""

import json
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from densenet_fast import block
from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import batch_norm, bn_relu_conv1x1, plan
from densenet_fast.backends.triton import launch as path
from densenet_fast.buffer import Buffer, Gradient, allocate
from densenet_fast.steps import flatten

from ..oracle import as_under_autocast, make_stage

LAUNCHED: list[list] = []  # name, x, y, z, stream, arguments; addresses are integers behind "at"
COMPILED: list[str] = []
GPU = 0  # that all tensors are on


class Launcher:
    def __init__(self, source, metadata):
        self.name = metadata.name
        self.kinds = list(source.signature.values())

    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        assert len(arguments) == len(self.kinds)
        assert not any(isinstance(a, torch.Tensor) for a in arguments)
        noted = [("at", a) if k[0] == "*" else a for a, k in zip(arguments, self.kinds, strict=True)]
        LAUNCHED.append([self.name, x, y, z, stream, noted, threading.get_ident()])


class Driver:
    launcher_cls = Launcher
    utils = property(lambda self: self)
    is_active = property(lambda self: True)

    def load_binary(self, name, kernel, shared, device):
        COMPILED.append(name)
        return 1, 1, 64, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return GPU


def stand_in() -> None:
    driver.set_active(Driver())
    torch.cuda.current_device = lambda: 0
    torch.cuda.device = lambda index: nullcontext()
    torch._C._cuda_getCurrentRawStream = lambda index: 1000 + index
    path._device = lambda index: path.Device(90, 132)
    path.gpu_of = plan.gpu_of = lambda x: None if x.is_meta else GPU


def variants() -> None:
    """What is compiled for single operations."""
    vector, weight = torch.ones(96), torch.randn(64, 96, 1, 1, dtype=torch.bfloat16)
    for batch, begin in (
        (2, 0),
        (3, 0),
        (3, 8),
        (3, 4),
    ):  # a slice that begins at 4 channels is not aligned to 16 bytes
        x = torch.randn(batch, 112, 5, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        bn_relu_conv1x1.bn_relu_conv1x1_fwd(x[:, begin : begin + 96], vector, vector, vector, None, 1e-5, weight, True)
    norms = [torch.ones(5) for _ in range(3)]
    batch_norm.update_running_stats(norms, norms, norms, norms, [9] * 3, [0.1] * 3)
    print(json.dumps({"launched": [entry[:4] for entry in LAUNCHED], "compiled": COMPILED}))


class Block:
    """Two layers in bfloat16 with all their tensors, their first gamma one tensor if `tied`."""

    def __init__(self, tied: bool = False, begin: int = 0, eps: float = 1e-5):
        layers, _ = as_under_autocast(make_stage(16, (16, 16), drop_rate=0.2), torch.bfloat16)
        gamma = layers[0].norm2.gamma
        layers = [s._replace(norm2=s.norm2._replace(gamma=gamma if tied else s.norm2.gamma, eps=eps)) for s in layers]
        self.layers = [s._replace(weight2=s.weight2.contiguous(memory_format=torch.channels_last)) for s in layers]
        x, g = (allocate((2, 64, 4, 4), torch.empty(0, dtype=torch.bfloat16))[:, begin : begin + 48] for _ in range(2))
        self.buffer = Buffer(x, *torch.zeros(2, 48).unbind(), True)
        self.gradient = Gradient(self.buffer, g)

    def step(self, ops) -> None:
        kept = block.forward(ops, self.buffer, self.layers, 16, keep_z=True, infer=False)
        needs = [layer._replace(weight1=True, weight2=True) for layer in self.layers]
        block.backward(ops, self.buffer, self.gradient, self.layers, 16, kept, True, needs)

    def launches(self, ops) -> list:
        """Of a step: addresses in the block's own tensors as (name, offset), of others the alignment alone."""
        LAUNCHED.clear()
        self.step(ops)
        return [[*entry[:5], [self.told(a) for a in entry[5]]] for entry in LAUNCHED]

    def told(self, argument):
        if not isinstance(argument, tuple):
            return argument
        _, address = argument
        for name, x in self.named().items():
            last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
            if 0 <= address - x.data_ptr() <= last * x.itemsize:
                return name, address - x.data_ptr()
        return "elsewhere", address % 16

    def named(self) -> dict[str, torch.Tensor]:
        leaves = {str(i): leaf for i, leaf in enumerate(flatten(self.layers)) if isinstance(leaf, torch.Tensor)}
        of_x = {"x": self.buffer.x, "mean": self.buffer.mean, "var": self.buffer.var}
        return of_x | {"g": self.gradient.g, "a": self.gradient.a, "b": self.gradient.b} | leaves


def blocks() -> None:
    """Steps of whole blocks, in one operation and layer by layer; in one thread while another plans; on another GPU."""
    global GPU
    whole = SimpleNamespace(**vars(operations))
    single = SimpleNamespace(**{name: f for name, f in vars(operations).items() if not name.startswith("dense_block")})
    made = [Block(tied=True), Block(), Block(begin=4), Block(eps=1e-3)]
    seen: dict = {"steps": [(made[i].launches(whole), made[i].launches(single)) for i in (0, 1, 2, 1, 3)]}
    seen["plans"] = plan._plan.cache_info().misses

    def planning(block: Block) -> None:
        for _ in range(20):
            plan._plan.cache_clear()
            block.step(whole)

    LAUNCHED.clear()
    sys.setswitchinterval(1e-6)
    pair = Block(), Block()
    threads = [
        threading.Thread(target=planning, args=[pair[0]]),
        threading.Thread(target=lambda: [pair[1].step(single) for _ in range(50)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    strangers = {thread.ident: b for thread, b in zip(threads, reversed(pair), strict=True)}
    found = [strangers[entry[6]].told(a)[0] for entry in LAUNCHED for a in entry[5] if isinstance(a, tuple)]
    seen["threads"] = {"launched": len(LAUNCHED), "mixed": sum(name != "elsewhere" for name in found)}

    before, GPU = len(COMPILED), 1
    seen["streams"] = sorted({entry[4] for entry in made[1].launches(whole)})
    seen["compiled"] = {"here": before, "elsewhere": len(COMPILED) - before}
    print(json.dumps(seen))


if __name__ == "__main__":
    stand_in()
    {"variants": variants, "blocks": blocks}[sys.argv[1]]()
