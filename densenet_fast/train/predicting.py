"""`densenet-fast predict`: the classes of image files."""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..cli import PROGRAM, Refused
from .classifier import Classifier
from .data import ImageData
from .files import load
from .running import ENTRY, quieten, trained
from .told import one_line


class Files(Dataset[tuple[Tensor, int]]):
    """Image files as a net's images, with their number in place of a label.

    Attributes:
        refused: why a file could not be read, by its number; a blank image stands in its place.
    """

    def __init__(self, paths: list[Path], transform: Callable[[Any], Tensor], channels: int):
        self.paths, self.transform, self.mode = paths, transform, "L" if channels == 1 else "RGB"
        self.refused: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = load(self.paths[index], self.mode)
        except Refused as refusal:
            self.refused[index] = str(refusal)
            image = Image.new(self.mode, (32, 32))
        return self.transform(image), index


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
    checkpoint = trained(options.ckpt_path)
    try:
        data = _data(checkpoint[ENTRY]["config"]["data"])
        model = Classifier(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError) as error:
        raise Refused(f"ckpt_path: got {options.ckpt_path}, whose parts do not fit: {one_line(str(error))}") from error
    files = Files(listed(options.images), data.transform(augment=False), data.in_channels)
    quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}
    try:
        trainer = pl.Trainer(accelerator=options.accelerator, devices=1, **quiet)
    except (MisconfigurationException, ValueError) as error:
        raise Refused(f"--accelerator: got {options.accelerator}: {one_line(str(error))}") from error
    if options.csv is not None:
        with _opened(options.csv, "a"):  # before the work
            pass
    batches = trainer.predict(model, DataLoader(files, options.batch_size))
    probabilities = torch.cat(batches)
    names = checkpoint[ENTRY]["class_names"] or [str(i) for i in range(probabilities.shape[1])]
    best, classes = probabilities.topk(min(options.top, len(names)))
    rows = []
    for i, (path, labels, shares) in enumerate(zip(files.paths, classes.tolist(), best.tolist(), strict=True)):
        if i in files.refused:
            print(f"{PROGRAM} predict: {files.refused[i]}", file=sys.stderr, flush=True)
            continue
        found = [(names[label], share) for label, share in zip(labels, shares, strict=True)]
        print(f"{path}: {', '.join(f'{name} {share:.1%}' for name, share in found)}", flush=True)
        rows += [(str(path), name, f"{share:.4f}") for name, share in found]
    if options.csv is not None:
        with _opened(options.csv, "w") as file:
            csv.writer(file).writerows([("file", "class", "probability"), *rows])
    return 1 if files.refused else 0


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[IO[str]]:
    try:
        with open(path, mode, newline="") as file:
            yield file
    except OSError as error:
        raise Refused(f"--csv: got {path}, which cannot be written: {error.strerror}") from error


def _data(config: dict[str, Any]) -> ImageData:
    """Only its transforms are wanted: nothing is read. Nothing but a data set is called."""
    module, _, name = config["class_path"].rpartition(".")
    data = getattr(import_module(module), name)
    if not (isinstance(data, type) and issubclass(data, ImageData)):
        raise Refused(
            f"ckpt_path: got {config['class_path']} as the data that it was trained on, expected an ImageData"
        )
    return data(**config["init_args"])
