"""Images for training: what all data sets have in common. The data sets are in `datasets`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

from .order import Images, Key, Order, Readable
from .told import expect


class ImageData(LightningDataModule, ABC):
    """Base of the data sets: a subclass reads images (`read`) and says how they are augmented and prepared.

    Args:
        root: folder of the data set.
        batch_size: images of a training step in each process.
        augment: the paper's "+": training images are shifted and mirrored at random.
        held_out: training images, drawn at random, that are not trained on but validate `fit`; 0 validates on the
            test images. `validate` always takes the test images.
        workers: processes that read images, beside each that trains.
        seed: of the order and the augmentation; the command links it to `--seed_everything`.

    Attributes:
        num_classes: outputs of the net.
        in_channels: channels of its images.
        image_size: their side in pixels.
        mean: of each channel, which `transform` subtracts.
        std: of each channel, which `transform` divides by.
        class_names: in the order of the labels, once images are read.
    """

    num_classes: int
    class_names: Sequence[str] = ()
    in_channels = 3
    image_size = 32
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        augment: bool = False,
        held_out: int = 0,
        workers: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("held_out", held_out, 0), ("workers", workers, 0)):
            expect(value >= least, f"data.{name}", value, f"at least {least}")
        self.root, self.batch_size, self.augment = Path(root), batch_size, augment
        self.held_out, self.workers, self.seed = held_out, workers, seed

    @abstractmethod
    def read(self, train: bool) -> Readable:
        """The training or the test images, as they are stored, and their labels."""

    def augmentation(self) -> list[Callable[[Any], Any]]:
        """Random transforms of an image, behind which it has the net's size."""
        return [v2.RandomCrop(self.image_size, padding=4), v2.RandomHorizontalFlip()]

    def sizing(self) -> list[Callable[[Any], Any]]:
        """Transforms that bring any image to the net's size."""
        return [v2.Resize(self.image_size), v2.CenterCrop(self.image_size)]

    def transform(self, augment: bool) -> Callable[[Any], Tensor]:
        """From an image as `read` has it to a normalised float32 tensor [C, H, W]."""
        return v2.Compose(
            [
                v2.ToImage(),
                *(self.augmentation() if augment else self.sizing()),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.mean, self.std),
                v2.ToPureTensor(),
            ]
        )

    def setup(self, stage: str) -> None:
        """Read the images that the trainer's stage needs."""
        if stage == "fit":
            train: Any = self.read(train=True)
            less = f"less than the {len(train)} images"
            expect(self.held_out < len(train), "data.held_out", self.held_out, less)
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
            self.train_images: Any = Subset(train, sorted(order[self.held_out :]))
            held_out: Any = Subset(train, sorted(order[: self.held_out]))
        self.test_images = held_out if stage == "fit" and self.held_out else self.read(train=False)

    def train_dataloader(self) -> StatefulDataLoader[Any]:
        """In the epoch's order; its state is the place in it."""
        trainer = self.trainer
        assert trainer is not None
        images = Images(self.train_images, self.transform(self.augment), self.seed)
        order = Order(images, trainer.world_size, trainer.global_rank, seed=self.seed)
        order.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # workers begin before Lightning says it
        return StatefulDataLoader(images, self.batch_size, sampler=order, **self._loading())

    def val_dataloader(self) -> DataLoader[Any]:
        """The process's part of the images, none of them twice."""
        trainer = self.trainer
        assert trainer is not None
        images = Images(self.test_images, self.transform(augment=False), self.seed)
        own = [Key(0, index) for index in range(trainer.global_rank, len(images), trainer.world_size)]
        return DataLoader(images, self.batch_size, sampler=own, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """A generator of their own keeps loaders from drawing from the net's."""
        pinned = torch.cuda.is_available()
        return {"num_workers": self.workers, "pin_memory": pinned, "generator": torch.Generator()}
