"""A script: the Triton launches of a training step and their machine code, of the checkout that it is started in, which
may be an older one; as a pickle of plain values. Planned on the meta device and compiled for sm_90: no GPU is needed.

python recorded.py MODEL IMAGE BATCH DTYPE
"""

import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subjects import net
from densenet_fast import backends
from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton.launch import Device, Launch, recorded, whole

H200 = Device(90, 132)


def training(model: str, image: int, batch: int, dtype: torch.dtype) -> list[tuple[str, Launch]]:
    """Each launch and the operation that makes it, as benchmarks/planned.py has them."""
    subject = net(model, image)
    owners: list[str] = []

    def owned(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            owners.extend([name] * (len(launches) - len(owners)))
            return result

        return call

    # Operators have fakes that launch nothing; the functions behind them plan.
    named = {name: function for name, function in vars(operations).items() if callable(function)}
    functions = SimpleNamespace(**{name: owned(name, function) for name, function in named.items()})
    before, backends.operations = backends.operations, lambda *_: functions  # type: ignore[assignment]
    try:
        with torch.device("meta"), recorded(H200) as launches:
            module = subject.ours("triton", False).to(dtype, memory_format=torch.channels_last)
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.float()  # autocast leaves them so
            x = torch.empty(batch, *subject.shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
            module.train()(x).float().sum().backward()
    finally:
        backends.operations = before
    return list(zip(owners, launches, strict=True))


def plain(value: Any) -> Any:
    """Tensors as their sizes and the bytes of an element."""
    if isinstance(value, Tensor):
        return {"shape": tuple(value.shape), "itemsize": value.element_size()}
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def main() -> None:
    answer, sys.stdout = sys.stdout.buffer, sys.stderr  # what the compilers print is not for the other side
    model, image, batch, dtype = sys.argv[1:]
    launches: list[Any] = []
    variants: dict[Any, int] = {}
    compiled: list[Any] = []
    for operation, launch in training(model, int(image), int(batch), getattr(torch, dtype)):
        name = launch.kernel.__name__
        key = name, launch.specialization, launch.num_warps, launch.num_stages
        if key not in variants:
            variants[key] = len(variants)
            made = launch.compile(H200.architecture)
            compiled.append((made.asm["cubin"], made.metadata.shared, launch.num_warps))
        arguments = {argument: plain(value) for argument, value in launch.arguments.items()}
        launches.append((name, operation, whole(launch.grid), arguments, variants[key]))
    pickle.dump((launches, compiled), answer)


if __name__ == "__main__":
    main()
