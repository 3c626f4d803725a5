"""Launches through the compiled path on a machine without a GPU, with a driver that only notes them. Run as a process
of its own, without TRITON_INTERPRET; prints, as JSON, what the driver saw."""

import json

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from densenet_fast.backends.triton import _reduce, batch_norm, bn_relu_conv1x1
from densenet_fast.backends.triton import launch as path

LAUNCHED: list[list] = []
COMPILED: list[str] = []


class Launcher:
    def __init__(self, source, metadata):
        self.name = metadata.name
        self.constants = [kind == "constexpr" for kind in source.signature.values()]

    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        assert len(arguments) == len(self.constants)
        assert not any(isinstance(a, torch.Tensor) for a in arguments)
        LAUNCHED.append([self.name, x, y, z])


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
        return 0


def main() -> None:
    driver.set_active(Driver())
    torch.cuda.current_device = lambda: 0
    torch._C._cuda_getCurrentRawStream = lambda index: 0
    path._device = lambda index: path.Device(90, 132)

    def launch(kernel, grid, *, num_warps, num_stages=1, **arguments):
        path._launch_compiled(kernel, grid, arguments, 0, num_warps, num_stages)

    for module in (batch_norm, bn_relu_conv1x1, _reduce):
        module.launch = launch
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
    print(json.dumps({"launched": LAUNCHED, "compiled": COMPILED}))


if __name__ == "__main__":
    main()
