"""The data sets of the paper, folders of images, and two that need no download.

Channel means and deviations of CIFAR are those of the paper's published code (fb.resnet.torch); SVHN is only divided by
255 (section 4.1).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from ..cli import Refused
from .data import ImageData
from .files import load
from .order import Readable
from .told import expect


@contextmanager
def _fetching() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: what came is not what was expected
        raise Refused(f"data.download: the archive could not be fetched: {error}") from error


class CIFAR10(ImageData):
    """CIFAR-10: 50,000 and 10,000 colour images of 32x32.

    Args:
        root: folder with `cifar-10-batches-py`, or the archive `cifar-10-python.tar.gz`.
        download: unpack the archive in `root`, and fetch it first where it is not there.
        **options: of `ImageData`.
    """

    archive: type[datasets.CIFAR10] = datasets.CIFAR10
    num_classes = 10
    mean, std = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)

    def __init__(self, root: str = "data", download: bool = False, **options: Any):
        super().__init__(root, **options)
        self.download = download

    def prepare_data(self) -> None:
        if self.download:
            with _fetching():
                self.archive(str(self.root), download=True)

    def read(self, train: bool) -> Readable:
        try:
            images = self.archive(str(self.root), train=train)
        except RuntimeError:
            raise Refused(
                f"data.root: got {str(self.root)!r}, expected a folder with {self.archive.base_folder}, or with "
                f"{self.archive.filename} and --data.download true, or --data.download true alone, which fetches it"
            ) from None
        self.class_names = images.classes
        return images


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 and 10,000 colour images of 32x32.

    Args:
        root: folder with `cifar-100-python`, or the archive `cifar-100-python.tar.gz`.
        download: unpack the archive in `root`, and fetch it first where it is not there.
        **options: of `ImageData`.
    """

    archive = datasets.CIFAR100
    num_classes = 100
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class SVHN(ImageData):
    """Street View House Numbers: 73,257 and 26,032 colour images of 32x32, and 531,131 easier ones.

    Args:
        root: folder with `train_32x32.mat`, `test_32x32.mat` and `extra_32x32.mat`.
        extra: train on the easier images, too, as in the paper.
        download: fetch those files that are not there.
        **options: of `ImageData`.
    """

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self, root: str = "data", extra: bool = True, download: bool = False, **options: Any):
        super().__init__(root, **options)
        self.splits = {True: ["train", "extra"] if extra else ["train"], False: ["test"]}
        self.download = download

    def augmentation(self) -> list[Callable[[Any], Any]]:
        """Shifts alone: a mirrored number is another, or none."""
        return [v2.RandomCrop(self.image_size, padding=4)]

    def prepare_data(self) -> None:
        if self.download:
            with _fetching():
                for split in self.splits[True] + self.splits[False]:
                    datasets.SVHN(str(self.root), split, download=True)

    def read(self, train: bool) -> Readable:
        try:
            parts = [datasets.SVHN(str(self.root), split) for split in self.splits[train]]
        except RuntimeError:
            files = " and ".join(f"{split}_32x32.mat" for split in self.splits[train])
            raise Refused(
                f"data.root: got {str(self.root)!r}, expected a folder with {files}, or --data.download true"
            ) from None
        return torch.utils.data.ConcatDataset(parts)


class ImageFolder(ImageData):
    """Images in one folder per class under `train` and `val`, as ImageNet is usually laid out.

    Args:
        root: folder with `train/<class>/*.jpg` and `val/<class>/*.jpg` (or PNG and others that PIL reads).
        image_size: side of the net's images; test images are first scaled to 8/7 of it.
        ten_crop: `validate` on the corners and the middle of an image and their mirror images, and average the
            probabilities.
        **options: of `ImageData`.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self, root: str = "data", augment: bool = True, image_size: int = 224, ten_crop: bool = False, **options: Any
    ):
        super().__init__(root, augment=augment, **options)
        expect(image_size >= 1, "data.image_size", image_size, "at least 1")
        self.image_size, self.ten_crop = image_size, ten_crop
        train = self.root / "train"
        self.class_names = sorted(f.name for f in train.iterdir() if f.is_dir()) if train.is_dir() else []

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Of the folders under `train`."""
        if not self.class_names:
            raise Refused(f"data.root: got {str(self.root)!r}, expected images in {self.root}/train/<class>/")
        return len(self.class_names)

    def augmentation(self) -> list[Callable[[Any], Any]]:
        """Of fb.resnet.torch, which the paper used: a part of 8 to 100 % of the area, mirrored, its colours changed."""
        jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
        return [v2.RandomResizedCrop(self.image_size), v2.RandomHorizontalFlip(), jitter]

    def sizing(self) -> list[Callable[[Any], Any]]:
        larger = v2.Resize(round(self.image_size * 8 / 7))
        if not self.ten_crop:
            return [larger, v2.CenterCrop(self.image_size)]
        return [larger, v2.TenCrop(self.image_size), _stack]

    def read(self, train: bool) -> Readable:
        folder = self.root / ("train" if train else "val")
        try:
            images = datasets.ImageFolder(str(folder), loader=partial(load, option="data.root"))
        except FileNotFoundError:
            raise Refused(f"data.root: got {str(self.root)!r}, expected images in {folder}/<class>/") from None
        for got, expected in zip_longest(images.classes, self.class_names):
            if got != expected:
                has = got or "no more"
                raise Refused(
                    f"data.root: got {has} in {folder}, expected {expected or 'no more'}, as in {self.root / 'train'}"
                )
        return images


def _stack(crops: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(crops))


class Digits(ImageData):
    """scikit-learn's bundled digits: 1,797 scans of 8x8, enlarged, four fifths of each class for training.

    Args:
        image_size: side to which they are enlarged.
        **options: of `ImageData`.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    in_channels = 1
    mean, std = (0.3053,), (0.3237,)

    def __init__(self, image_size: int = 32, **options: Any):
        super().__init__(**options)
        expect(image_size >= 1, "data.image_size", image_size, "at least 1")
        self.image_size = image_size

    def augmentation(self) -> list[Callable[[Any], Any]]:
        """Shifts alone: a mirrored digit is another, or none."""
        return [v2.RandomCrop(self.image_size, padding=self.image_size // 16)]

    def read(self, train: bool) -> Readable:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        scans = load_digits()
        images = torch.tensor(scans.images / 16, dtype=torch.float32)[:, None]  # [N, 1, 8, 8]
        images = v2.functional.resize(images, [self.image_size, self.image_size])
        parts = train_test_split(range(len(images)), test_size=0.2, stratify=scans.target, random_state=0)
        return [(images[i], int(scans.target[i])) for i in parts[0 if train else 1]]


class Synthetic(ImageData):
    """Random images and labels: for speed and memory, and to look for faults; nothing can be learnt from them.

    Args:
        images: how many of them; a tenth as many for validation.
        num_classes: of the labels.
        image_size: side of the images.
    """

    def __init__(
        self,
        batch_size: int = 64,
        augment: bool = False,
        workers: int = 2,
        seed: int = 0,
        images: int = 1280,
        num_classes: int = 10,
        image_size: int = 32,
    ):
        super().__init__(".", batch_size, augment, 0, workers, seed)
        for name, value in (("images", images), ("num_classes", num_classes), ("image_size", image_size)):
            expect(value >= 1, f"data.{name}", value, "at least 1")
        self.images, self.num_classes, self.image_size = images, num_classes, image_size
        self.class_names = [str(i) for i in range(num_classes)]

    def read(self, train: bool) -> Readable:
        length = self.images if train else max(1, self.images // 10)
        shape = (3, self.image_size, self.image_size)
        return datasets.FakeData(length, shape, self.num_classes, random_offset=0 if train else self.images)
