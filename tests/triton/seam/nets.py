"""Steps of a small DenseNet: launch by launch, from its plans, on another device, in fresh threads, after errors."""

import threading

import torch

from densenet_fast import DenseNet

from . import DRIVER, LAUNCH_ONLY, again_findings, on_gpu, step_findings

BECOMES_CURRENT = {"cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"}  # a context, in a thread without one


class Net:
    """A small DenseNet with a stem, two blocks, a transition, dropout and a head, and an image, to step on."""

    def __init__(self, dtype: torch.dtype, precision: str = "ieee", bn_size: int | None = 4):
        torch.backends.cudnn.conv.fp32_precision = precision
        torch.manual_seed(0)
        sizes = {"growth_rate": 32, "block_config": (2, 1), "num_init_features": 64, "small_inputs": False}
        model = DenseNet(**sizes, bn_size=bn_size, drop_rate=0.2, backend="triton")
        self.model = model.to(memory_format=torch.channels_last)
        self.x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        self.dtype = dtype

    def train(self) -> None:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            y = self.model.train()(self.x)
        y.float().sum().backward()

    def infer(self) -> None:
        with torch.no_grad(), torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            self.model.eval()(self.x)


def nets() -> dict[str, list[str]]:
    """Training and inference of every precision, with and without bottlenecks, twice each."""
    found = {}
    forms = {"bf16": (torch.bfloat16,), "tf32": (torch.float32, "tf32"), "fp32": (torch.float32,)}
    for name, form in {**forms, "plain": (torch.float32, "tf32", None)}.items():
        net = Net(*form)
        for mode, step in (("training", net.train), ("inference", net.infer)):
            first, launches, launched = step_findings(step)
            found[f"{name} {mode}"] = first or (["no launches"] if not launches else [])
            found[f"{name} {mode} again"] = again_findings(step, launches, launched)
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

    def failing(call: str, index: int) -> list[str]:
        DRIVER.fail(call, 719)
        try:
            with on_gpu(index):
                net.train()
        except RuntimeError as error:
            told = str(error)
            return [] if told.endswith("driver error 719") else [f"told {told!r}"]
        return [f"{call} failed in silence"]

    found["a launch that fails"] = failing("cuLaunchKernelEx", 0)
    found["the step behind it"] = again_findings(net.train, launches, launched)
    found["a kernel that cannot be loaded"] = failing("cuModuleLoadData", 1)
    found["another device"], *_ = step_findings(net.train, 1)
    moved = [entry._replace(stream=0x1001, context=2) for entry in launched]
    found["another device again"] = again_findings(net.train, launches, moved, 1)
    found["a fresh thread"] = in_thread(0)
    found["a fresh thread on another device"] = in_thread(1)
    return found
