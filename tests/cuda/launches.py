"""`python -m tests.cuda.launches [BATCH]`: the launches of DenseNet-121's layers as an H200 would get them: kernel and
tile, grid, threads, dynamic shared memory; and how many a training step takes. Needs nvcc and no GPU. Registers:
`python -m densenet_fast.info`."""

import subprocess
import sys
from collections.abc import Iterator
from math import prod
from unittest import mock

import torch

import densenet_fast
from densenet_fast import backends
from tools.gpucheck.cuda.launches import Launched

from ..calls import Geometry, make
from .device import Machine, build

H200 = (132, 232448)  # multiprocessors, shared memory of a block
NAMES = [f"conv{kind}_{way}" for kind in ("1x1", "3x3") for way in ("fwd", "bwd")]


def layers(batch: int, growth: int = 32) -> Iterator[Geometry]:
    """The last layer of each block, which has the most channels."""
    channels = 64
    for layers, size in zip((6, 12, 24, 16), (56, 28, 14, 7), strict=True):
        yield Geometry(batch, size, size, channels + (layers - 1) * growth, 4 * growth, growth)
        channels = (channels + layers * growth) // 2


def launches(machine: Machine, name: str, geometry: Geometry, dtype: torch.dtype = torch.bfloat16) -> list[Launched]:
    """Those of an operation; none is run."""
    machine.set_idle(True)
    machine.launches.clear()
    make(name, geometry, dtype).on(machine.operations)
    return list(machine.launches)


def step(machine: Machine) -> list[Launched]:
    """Those of a training step of DenseNet-121 under autocast, at any batch and size of the images; none is run."""
    machine.set_idle(True)
    machine.launches.clear()
    net = densenet_fast.densenet121(backend="eager")
    with mock.patch.object(backends, "operations", return_value=machine.operations):
        with torch.autocast("cpu", torch.bfloat16):
            y = net(torch.randn(2, 3, 64, 64))
        y.sum().backward()
    return list(machine.launches)


def readable(kernels: list[str]) -> list[str]:
    names = subprocess.run(["c++filt", *kernels], capture_output=True, text=True, check=True).stdout
    for noise in ("densenet_fast::cuda::", "(anonymous namespace)::", "conv3x3::", "void "):
        names = names.replace(noise, "")
    return [name.rpartition("(")[0] for name in names.splitlines()]


def main(batch: int) -> None:
    machine = Machine(build())
    machine.device = H200
    machine.set(tf32=False)
    for geometry in layers(batch):
        for name in NAMES:
            print(f"{name}, {batch} x {geometry.h}x{geometry.w}, {geometry.c} channels")
            found = launches(machine, name, geometry)
            for kernel, run in zip(readable([run.kernel for run in found]), found, strict=True):
                print(f"  {kernel}: grid {run.grid}, {prod(run.block)} threads, {run.shared} bytes")
    print(f"{len(step(machine))} launches of a training step")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
