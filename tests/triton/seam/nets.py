"""Steps of a small DenseNet: launch by launch, from its plans, on another device, in fresh threads, after errors."""

import re
import threading
from collections.abc import Callable

import torch

from densenet_fast import DenseNet

from . import DRIVER, LAUNCH_ONLY, again_findings, on_gpu, step_findings
from .blocks import Block

BECOMES_CURRENT = {"cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"}  # a context, in a thread without one


class Net:
    """A small DenseNet with a stem, two blocks, a transition, dropout and a head, and an image, to step on."""

    def __init__(self, dtype: torch.dtype, precision: str = "ieee", bn_size: int | None = 4):
        torch.manual_seed(0)
        sizes = {"growth_rate": 32, "block_config": (2, 1), "num_init_features": 64, "small_inputs": False}
        model = DenseNet(**sizes, bn_size=bn_size, drop_rate=0.2, backend="triton")
        self.model = model.to(memory_format=torch.channels_last)
        self.x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        self.dtype, self.precision = dtype, precision

    def train(self) -> None:
        torch.backends.cudnn.conv.fp32_precision = self.precision
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            y = self.model.train()(self.x)
        y.float().sum().backward()

    def infer(self) -> None:
        with torch.no_grad(), torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            self.model.eval()(self.x)


def nets() -> dict[str, list[str]]:
    """Training in every precision, with and without bottlenecks, and inference, twice each."""
    bf16, plain = Net(torch.bfloat16), Net(torch.bfloat16, bn_size=None)
    tf32, fp32 = Net(torch.float32, "tf32"), Net(torch.float32)
    steps = {"bf16": bf16.train, "inference": bf16.infer, "plain": plain.train, "tf32": tf32.train, "fp32": fp32.train}
    found = {}
    for name, step in steps.items():
        first, launches, launched = step_findings(step)
        found[name] = first or ["no launches"] * (not launches)
        found[f"{name} again"] = again_findings(step, launches, launched)
    return found


def places() -> dict[str, list[str]]:
    """Another device, threads that have no current context yet, launches and loads that fail."""
    net, found = Net(torch.bfloat16), {}
    _, launches, launched = step_findings(net.train)

    def in_thread(index: int) -> list[str]:
        got: list[str] = []

        def run() -> None:
            got.extend(["a context before the first launch"] * (DRIVER.context != 0))
            moved = [entry._replace(stream=0x1000 + index, context=index + 1) for entry in launched]
            got.extend(again_findings(net.train, launches, moved, index, LAUNCH_ONLY | BECOMES_CURRENT))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return got

    def failing(call: str, step: Callable[[], None], index: int = 0) -> list[str]:
        DRIVER.fail(call, 719)
        try:
            with on_gpu(index):
                step()
        except RuntimeError as error:
            named = re.match(r"densenet_fast: cannot launch \w+_kernel: got .*driver error 719;", str(error))
            return [] if named else [f"told {error}"]
        return [f"{call} failed in silence"]

    before = {name: b.clone() for name, b in net.model.named_buffers()}
    one = Block()
    found["a launch that fails"] = failing("cuLaunchKernelEx", net.train)
    found["the running statistics behind it"] = [n for n, b in net.model.named_buffers() if not b.equal(before[n])]
    found["a block's launch that fails"] = failing("cuLaunchKernelEx", one.step)
    found["the step behind them"] = again_findings(net.train, launches, launched)
    found["a kernel that cannot be loaded"] = failing("cuModuleLoadData", net.train, 1)
    found["another device"], *_ = step_findings(net.train, 1)
    moved = [entry._replace(stream=0x1001, context=2) for entry in launched]
    found["another device again"] = again_findings(net.train, launches, moved, 1)
    found["a fresh thread"] = in_thread(0)
    found["a fresh thread on another device"] = in_thread(1)
    return found
