"""Every Triton launch of a net's training step and inference, planned on the meta device: no GPU, nothing computed.

    launches = planned("densenet121", 224, 256, torch.bfloat16, Device(90, 132))
    failed = {variant: why for variant, why in precompile.compile_all(launches, 90).items() if why}

fills Triton's cache (TRITON_CACHE_DIR) for that very batch with many processes while something else runs; the first
step then compiles nothing. `python -m benchmarks.planned densenet121 224 256 bfloat16` does the same for the card here;
with `--count` it tells how many launches of which kernels a training step makes on an H200, and needs no card.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from densenet_fast import backends
from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import launch, precompile
from densenet_fast.backends.triton.launch import Device, Launch
from densenet_fast.contract import DECLARATIONS

from .subjects import net

H200 = Device(90, 132)


def planned(
    model: str, image: int, batch: int, dtype: torch.dtype, device: Device, efficient: bool = False
) -> list[Launch]:
    """The launches of a training step (half precision: as under autocast) and of inference, on channels_last images.

    device: what they are planned for, compute capability * 10 and multiprocessors: `Device(90, 132)` is an H200.
    """
    with _recorded(model, image, batch, dtype, device, efficient) as (module, x, found):
        with torch.no_grad():
            module.eval()(x)
        _train(module, x)
    return found


def training(model: str, image: int, batch: int, dtype: torch.dtype, device: Device) -> list[Launch]:
    """Those of the training step alone."""
    with _recorded(model, image, batch, dtype, device) as (module, x, found):
        _train(module, x)
    return found


@contextmanager
def _recorded(
    model: str, image: int, batch: int, dtype: torch.dtype, device: Device, efficient: bool = False
) -> Iterator[tuple[nn.Module, Tensor, list[Launch]]]:
    """The net and images on the meta device, and the launches that it makes inside."""
    subject = net(model, image)
    functions = SimpleNamespace(**{name: getattr(operations, name) for name in DECLARATIONS})
    # Operators have fakes that launch nothing; the functions behind them plan.
    with (
        patch.object(backends, "operations", lambda *_: functions),
        torch.device("meta"),
        launch.recorded(device) as found,
    ):
        module = subject.ours("triton", efficient).to(dtype, memory_format=torch.channels_last)
        x = torch.empty(batch, *subject.shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        yield module, x, found


def _train(module: nn.Module, x: Tensor) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.float()  # autocast leaves them so
    module.train()(x).float().sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile what a net's step launches on the GPU here.")
    parser.add_argument("model")
    parser.add_argument("image", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("dtype", help="bfloat16, float16 or float32")
    parser.add_argument("--count", action="store_true", help="only count a training step's launches, on an H200")
    options = parser.parse_args()
    if options.count:
        net_and_images = options.model, options.image, options.batch, getattr(torch, options.dtype)
        names = [entry.kernel.__name__.removesuffix("_kernel") for entry in training(*net_and_images, H200)]
        for name, times in Counter(names).most_common():
            print(f"{times:5d} {name}")
        print(f"{len(names):5d} launches")
        return
    if not torch.cuda.is_available():
        parser.error("no CUDA device: got none, expected the one to compile for")
    device = launch.device_of(torch.empty(0, device="cuda"))
    step = planned(options.model, options.image, options.batch, getattr(torch, options.dtype), device)
    outcomes = precompile.compile_all(step, device.architecture)
    failed = {variant: why for variant, why in outcomes.items() if why}
    for variant, why in failed.items():
        print(f"{variant.kernel}: {why}")
    print(f"{len(outcomes)} variants, {len(failed)} of which do not compile")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
