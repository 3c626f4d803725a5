"""What a run measures: the real thing on a GPU, or a rehearsal of all of it on the CPU with tiny nets."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..compare import Workload
from ..machine import ROOT
from ..subjects import net

BUILD = ROOT / "build" / "gpu"  # caches, logs, what the children hand to each other

Shape = tuple[int, int, int, int, int, int]  # N, H, W, C, bottleneck width, growth

# Rows on no 16 bytes; a second turn of z and channels that divide by nothing; more than 64 tiles, wide tiles, several
# splits; one image; a real layer of each block of DenseNet-121 at batch 32.
SHAPES: tuple[Shape, ...] = (
    (2, 5, 7, 24, 16, 4),
    (3, 8, 8, 37, 48, 12),
    (8, 14, 14, 256, 128, 32),
    (1, 6, 5, 301, 160, 40),
    (32, 56, 56, 96, 128, 32),
    (32, 28, 28, 480, 128, 32),
    (32, 14, 14, 992, 128, 32),
    (32, 7, 7, 992, 128, 32),
)


class Settings(NamedTuple):
    """large, middle, small, one: batches. checked: (net, image, batch) of the nets whose whole step is checked.
    silence: seconds after which a child that says nothing is taken for hung. least: seconds that a turn lasts.
    """

    device: torch.device
    dtype: torch.dtype
    backends: tuple[str, ...]
    model: str
    image: int
    large: int
    middle: int
    small: int
    one: int
    checked: tuple[tuple[str, int, int], ...]
    shapes: tuple[Shape, ...]
    silence: float
    least: float
    parallel: int
    out: Path
    operations: tuple[str, ...] = ()  # those to be checked and timed; none: all

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def workload(self, training: bool, batch: int) -> Workload:
        return Workload(net(self.model, self.image), batch, self.device, self.dtype, training)

    def describe(self, batch: int, rounds: int) -> dict[str, Any]:
        """The settings of a results file."""
        return {
            "model": self.model,
            "image": self.image,
            "batch": batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "peers": "benchmarks.gpu",
            "rounds": rounds,
            "seconds": self.least,
            "allocator": "keep",
        }

    def dtypes(self, backend: str) -> tuple[torch.dtype, ...]:
        """Those in which a backend's operations are checked."""
        wide = (torch.bfloat16, torch.float32, torch.float16)
        return wide if self.on_gpu else ((torch.float32,) if backend == "native" else wide[:2])


def on_a_gpu(out: Path) -> Settings:
    cores = os.cpu_count() or 1
    return Settings(
        torch.device("cuda"),
        torch.bfloat16,
        ("native", "triton", "eager"),
        "densenet121",
        224,
        256,
        32,
        8,
        1,
        (("densenet121", 224, 32), ("bc-100-12", 32, 64)),
        SHAPES,
        30.0,
        0.4,
        max(1, min(8, cores // 2)),
        out,
    )


def rehearsal(out: Path) -> Settings:
    cpu = torch.device("cpu")
    checked = (("bc-10-4", 16, 2), ("bc-16-4", 8, 2))
    return Settings(
        cpu, torch.float32, ("native", "eager"), "bc-10-4", 8, 4, 3, 2, 1, checked, SHAPES[:2], 15.0, 0.0, 2, out
    )
