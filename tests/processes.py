"""Checks that several processes run together, and what one process with the whole batch gives: on the CPU and gloo, and
where each process has a GPU of its own, there and on NCCL. A check's tensors are on the default device."""

import copy
import datetime
import faulthandler
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from densenet_fast import DenseNet

from .contract.backends import Values
from .oracle import away_from_start, error

Check = Callable[[int], None]  # of a process's rank
Parts = Sequence[Sequence[int]]  # the ranks of each group, in order


def devices(processes: int) -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.device_count() >= processes else ["cpu"]


def chosen(checks: Sequence[Check], items: Sequence[pytest.Item]) -> list[Check]:
    """Those that any of pytest's items names in brackets."""
    return [check for check in checks if any(item.name.endswith(f"-{check.__name__}]") for item in items)]


def run(checks: Sequence[Check], processes: int, device: str = "cpu", timeout: float = 60) -> dict[str, str]:
    """What went wrong in each check, by its name: "" if nothing did. Where one fails, those behind it do not run."""
    with TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=_work, args=(rank, processes, device, folder, list(checks), timeout), daemon=True)
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return {check.__name__: _outcome(Path(folder), check, processes) for check in checks}


def _outcome(folder: Path, check: Check, processes: int) -> str:
    files = [folder / f"{check.__name__}.{rank}" for rank in range(processes)]
    texts = [file.read_text() if file.exists() else "not reached" for file in files]
    return "\n".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)


def _work(rank: int, processes: int, device: str, folder: str, checks: list[Check], timeout: float) -> None:
    faulthandler.dump_traceback_later(600, exit=True)  # who hangs outside of PyTorch's own time limits
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a block that runs its plain layers is a failure
    torch.use_deterministic_algorithms(True)  # memory that is not initialised holds NaN
    limit = datetime.timedelta(seconds=timeout)
    if device == "cuda":
        torch.cuda.set_device(rank)
        torch.set_default_device(torch.device(device, rank))
    engine = {"cpu": "gloo", "cuda": "nccl"}[device]
    dist.init_process_group(engine, f"file://{folder}/store", limit, processes, rank)
    for check in checks:
        torch.manual_seed(0)
        text = ""
        try:
            check(rank)
        except BaseException:
            text = traceback.format_exc()
        Path(folder, f"{check.__name__}.{rank}").write_text(text)
        if text:
            sys.exit(1)
    dist.destroy_process_group()


class Step(NamedTuple):
    output: Tensor
    of_images: Tensor
    gradients: Values
    buffers: Values

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, cotangent: Tensor) -> "Step":
        """A training step; the gradients are sums over the images."""
        x = x.detach().clone().requires_grad_()
        y = model(x)
        y.backward(cotangent)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        return cls(y.detach(), x.grad, gradients, dict(model.named_buffers()))

    def summed(self) -> "Step":
        """Gradients of parameters over all processes, as DistributedDataParallel sums them before it averages."""
        for gradient in self.gradients.values():
            if gradient is not None:
                dist.all_reduce(gradient)
        return self

    def of_part(self, part: slice) -> "Step":
        return self._replace(output=self.output[part], of_images=self.of_images[part])

    def check(self, exact: "Step", scale: float = 1.0) -> None:
        """Hold this to the exact step to 1e-9, its gradients of parameters multiplied by `scale`."""
        pairs = {"output": (self.output, exact.output), "images": (self.of_images, exact.of_images)}
        assert self.gradients.keys() == exact.gradients.keys()
        for name, gradient in self.gradients.items():
            assert (gradient is None) == (exact.gradients[name] is None), name
            if gradient is not None:
                pairs[f"gradient of {name}"] = gradient * scale, exact.gradients[name]
        assert self.buffers.keys() == exact.buffers.keys()
        pairs |= {name: (buffer, exact.buffers[name]) for name, buffer in self.buffers.items()}
        wrong = {name: e for name, (a, b) in pairs.items() if a.numel() and not (e := error(a, b)) < 1e-9}
        assert not wrong, wrong


def net(small_inputs: bool = False, **config) -> DenseNet:
    """In float64, with the same weights in every process."""
    torch.manual_seed(0)
    config = {"block_config": (2, 3), "num_init_features": 7, "growth_rate": 6, "backend": "eager"} | config
    return away_from_start(DenseNet(small_inputs=small_inputs, **config).double())


def batch(sizes: Sequence[int], rank: int, size: int = 36) -> tuple[Tensor, Tensor, slice]:
    """All images, the cotangent of their scores, and which of them are the process's."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    x = torch.randn(sum(sizes), 3, size, size + 4, dtype=torch.float64, generator=generator)
    cotangent = torch.randn(sum(sizes), 10, dtype=torch.float64, generator=generator)
    begin = sum(sizes[:rank])
    return x, cotangent, slice(begin, begin + sizes[rank])


class InParts(nn.Module):
    """A norm that takes statistics of each part of the batch by itself; its buffers are those of one of them."""

    def __init__(self, norm: nn.BatchNorm2d, sizes: Sequence[int], own: int):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        others = [norm if part == own else copy.deepcopy(norm) for part in range(len(sizes))]
        for other in others:
            other.weight, other.bias = norm.weight, norm.bias
        self.parts = lambda x: torch.cat([n(p) for n, p in zip(others, x.split(list(sizes)), strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


def in_parts(model: nn.Module, sizes: Sequence[int], rank: int, parts_of: Callable[[int], Parts]) -> nn.Module:
    """`model` as one process, with its norms, each by its number, in the parts of the batch that the ranks have."""
    for i, (name, norm) in enumerate(all_norms(model)):
        parts = parts_of(i)
        own = next(part for part, ranks in enumerate(parts) if rank in ranks)
        model.set_submodule(name, InParts(norm, [sum(sizes[r] for r in ranks) for ranks in parts], own))
    return model.set_backend("plain")


def all_norms(model: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
