"""Which image comes when, and what its augmentation draws: functions of the seed, the epoch and the image alone.

A run that is resumed in the middle of an epoch, with any number of workers, therefore sees the very images that it
would have seen.
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler


class Key(NamedTuple):
    """What a sampler yields and `Images` takes: the image's number, in which epoch."""

    epoch: int
    image: int


class Readable(Sized, Protocol):
    """A dataset with a length, of images (PIL's, or tensors) and labels."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class Order(DistributedSampler[Any]):
    """A process's part of the epoch's permutation: batches of b in p processes are together those of p b in one."""

    def __iter__(self) -> Iterator[Any]:
        return iter([Key(self.epoch, index) for index in super().__iter__()])


class Images(Dataset[tuple[Tensor, int]]):
    """A dataset whose images a transform makes tensors of, with random numbers of the key's own."""

    def __init__(self, source: Readable, transform: Callable[[Any], Tensor], seed: int):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        image, label = self.source[key.image]
        with torch.random.fork_rng(devices=[]):
            mixed = np.random.SeedSequence((self.seed, *key)).generate_state(1)  # torch's generator takes 32 bits
            torch.random.default_generator.manual_seed(int(mixed[0]))
            return self.transform(image), int(label)
