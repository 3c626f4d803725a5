"""A script: the native launches of a training step, of the checkout that it is started in, as a pickle of plain values.
The net is on the meta device; its operations run on the stand-in driver of tests/cuda/device.py, with tensors whose
memory is asked for and never touched. It needs nvcc and a C++ compiler, and no GPU.

python recorded.py MODEL IMAGE BATCH DTYPE
"""

import ctypes
import pickle
import re
import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from benchmarks.subjects import net
from densenet_fast import backends
from tests.cuda.device import Machine, build

H200 = (132, 232448)  # multiprocessors, shared memory of a block


class Recorder(Machine):
    """Notes of each launch the kernel, the operation that makes it, grid, threads, dynamic shared memory and
    parameters. An older checkout's machine gives a launch's threads as a number, and its structure by itself."""

    def __init__(self, folder: Path):
        self.found: list[tuple[str, str, tuple[int, ...], int, int, bytes]] = []
        super().__init__(folder)
        self.device = H200
        self.set(tf32=True)  # as PyTorch has it unless told otherwise
        getattr(self, "set_idle", partial(setattr, self, "idle"))(True)

    def _checked(self, operator: Any) -> Callable[..., Any]:
        run = super()._checked(operator)
        name = operator._schema.name.partition("::")[2]

        def call(*arguments: Any) -> Any:
            self.operation = name
            return tree_map(on_meta, run(*in_memory(arguments)))

        return call

    def _launch(self, name: Any, grid: Any, block: Any, shared: int, args: Any, regions: Any, count: int) -> None:
        super()._launch(name, grid, block, shared, args, regions, count)
        kernel = name.decode()
        size = re.search(rf"{kernel}_param_0\[(\d+)\]", self.texts[kernel])
        if self.fault is None and size is not None:
            at, threads = (args, block) if isinstance(block, int) else (args[0], prod(block.contents))
            content = ctypes.string_at(at, int(size[1]))
            self.found.append((kernel, self.operation, tuple(grid.contents), threads, shared, content))


def on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def in_memory(arguments: Any) -> Any:
    """Tensors of the meta device as ones on the CPU: what shares memory there shares it here."""
    storages: dict[int, Tensor] = {}

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cpu")
        memory = storages[storage._cdata].untyped_storage()
        empty = torch.empty(0, dtype=value.dtype, device="cpu")
        return empty.set_(memory, value.storage_offset(), value.shape, value.stride())

    with torch.device("cpu"):
        return tree_map(copied, arguments)


def training(model: str, image: int, batch: int, dtype: torch.dtype) -> list[Any]:
    folders = [Path(".pytest_cache/d/densenet_fast_cuda").resolve()] if signature(build).parameters else []
    recorder = Recorder(build(*folders))
    subject = net(model, image)
    before, backends.operations = backends.operations, lambda *_: recorder.operations
    try:
        with torch.device("meta"):
            module = subject.ours("native", False).to(dtype, memory_format=torch.channels_last)
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.float()  # autocast leaves them so
            x = torch.empty(batch, *subject.shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
            module.train()(x).float().sum().backward()
    finally:
        backends.operations = before
    return recorder.found


def main() -> None:
    answer, sys.stdout = sys.stdout.buffer, sys.stderr  # what compilers print is not for the other side
    model, image, batch, dtype = sys.argv[1:]
    pickle.dump(training(model, int(image), int(batch), getattr(torch, dtype)), answer)


if __name__ == "__main__":
    main()
