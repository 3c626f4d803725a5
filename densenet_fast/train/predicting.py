"""`densenet-fast predict`: the classes of image files."""

import argparse
import csv
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..cli import Refused
from .checkpoints import read
from .classifier import Classifier
from .data import ImageData
from .running import ENTRY, quieten


class Files(Dataset[tuple[Tensor, int]]):
    """Image files as a net's images, with their number in place of a label."""

    def __init__(self, paths: list[Path], transform: Callable[[Any], Tensor], channels: int):
        self.paths, self.transform, self.mode = paths, transform, "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            with Image.open(self.paths[index]) as image:
                return self.transform(image.convert(self.mode)), index
        except (UnidentifiedImageError, OSError) as error:
            raise Refused(f"images: got {self.paths[index]}, which cannot be read as an image ({error})") from None


def listed(given: list[Path]) -> list[Path]:
    """The files, and those of the folders that have the name of an image."""
    Image.init()
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in Image.EXTENSION)
            if not inside:
                raise Refused(f"images: got {path}, a folder without images")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise Refused(f"images: got {path}, which does not exist")
    return paths


def predict(options: argparse.Namespace) -> int:
    quieten()
    checkpoint = read(options.ckpt_path)
    if ENTRY not in checkpoint:
        raise Refused(f"ckpt_path: got {options.ckpt_path}, expected a checkpoint of `densenet-fast fit`")
    data = _data(checkpoint[ENTRY]["config"]["data"])
    model = Classifier(**checkpoint["hyper_parameters"])
    model.load_state_dict(checkpoint["state_dict"])
    files = Files(listed(options.images), data.transform(augment=False), data.in_channels)
    quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator=options.accelerator, devices=1, **quiet)
    batches = trainer.predict(model, DataLoader(files, options.batch_size))
    probabilities = torch.cat(batches)
    names = checkpoint[ENTRY]["class_names"] or [str(i) for i in range(probabilities.shape[1])]
    best, classes = probabilities.topk(min(options.top, len(names)))
    rows = [
        (str(path), names[label], f"{p:.4f}")
        for path, labels, ps in zip(files.paths, classes.tolist(), best.tolist(), strict=True)
        for label, p in zip(labels, ps, strict=True)
    ]
    for path in files.paths:
        told = [f"{name} {float(p):.1%}" for file, name, p in rows if file == str(path)]
        print(f"{path}: {', '.join(told)}")
    if options.csv is not None:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([("file", "class", "probability"), *rows])
    return 0


def _data(config: dict[str, Any]) -> ImageData:
    """Only its transforms are wanted: nothing is read."""
    module, _, name = config["class_path"].rpartition(".")
    data: ImageData = getattr(import_module(module), name)(**config["init_args"])
    return data
