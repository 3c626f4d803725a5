"""The demo: train a DenseNet-BC on real images, then compare it with a stock execution of the same weights.

    python -m benchmarks.digits [--epochs 5] [--device cpu] [--backend auto] [--seed 0] [--out benchmarks/out]

The images are scikit-learn's bundled digits: 1,797 scans of handwritten digits, 8x8, enlarged to 32x32. Prints
accuracy, speed and memory, and writes memory_against_depth.png into --out. The exit code is 1 if the test accuracy is
below 97 %.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import densenet_fast

from .machine import describe, keep_freed_memory
from .memory import StepMemory, measure
from .pictures import CURVES, DEPTH, TITLES, Curve, memory_against_depth, save
from .subjects import net

BATCH = 32
REQUIRED_ACCURACY = 0.97
DEPTHS = (40, 70, 100, 130, 160, 190, 220, 250)  # of the picture's nets; the paper has 40, 100, 190 and 250


class Digits(NamedTuple):
    """Images [N, 1, 32, 32], normalised by the training images' mean and deviation, and their digits [N]."""

    train_images: Tensor
    test_images: Tensor
    train_labels: Tensor
    test_labels: Tensor


def load(device: torch.device) -> Digits:
    """The digits, four fifths of each class for training; the split does not depend on the run's seed."""
    scans = load_digits()
    labels = torch.tensor(scans.target, device=device)
    images = torch.tensor(scans.images, dtype=torch.float32, device=device)[:, None]
    images = F.interpolate(images, (32, 32), mode="bilinear").contiguous(memory_format=torch.channels_last)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=scans.target, random_state=0)
    images = (images - images[train].mean()) / images[train].std()
    return Digits(images[train], images[test], labels[train], labels[test])


def train(model: nn.Module, digits: Digits, epochs: int, weight_decay: float = 1e-4) -> None:
    """SGD with Nesterov momentum, as in the paper (section 4.2), its learning rate on a one-cycle schedule."""
    images, labels = digits.train_images, digits.train_labels
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    steps_per_epoch = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=epochs, steps_per_epoch=steps_per_epoch)
    model.train()
    with tqdm(total=epochs * steps_per_epoch, desc="training", unit="step") as bar:
        for epoch in range(1, epochs + 1):
            order = torch.randperm(len(labels), device=labels.device)
            for batch in order[: steps_per_epoch * BATCH].split(BATCH):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(epoch=f"{epoch}/{epochs}", loss=f"{loss.item():.3f}")
                bar.update()


@torch.inference_mode()
def accuracy(model: nn.Module, digits: Digits) -> float:
    model.eval()
    right = [
        (model(images).argmax(1) == labels).sum().item()
        for images, labels in zip(digits.test_images.split(BATCH), digits.test_labels.split(BATCH), strict=True)
    ]
    return sum(right) / len(digits.test_labels)


def images_per_second(models: list[nn.Module], x: Tensor, labels: Tensor, rounds: int = 9) -> list[float]:
    """Training speed (forward and backward): the models take turns, so that a busy machine hits all alike; medians."""
    times: list[list[float]] = [[] for _ in models]
    for _ in tqdm(range(rounds + 1), desc="timing", unit="round"):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            F.cross_entropy(model(x), labels).backward()
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            taken.append(time.perf_counter() - start)
    return [len(x) / statistics.median(taken[1:]) for taken in times]  # the first warms up


def compare(model: densenet_fast.DenseNet, digits: Digits) -> str:
    """A table of the trained model, the same with `efficient=True`, and its layers executed the stock way."""
    models = {
        "densenet_fast": model,
        "densenet_fast, efficient": copy.deepcopy(model).set_efficient(),
        "stock (torch.cat, modules)": copy.deepcopy(model).set_backend("plain"),
    }
    models = {name: m.to(memory_format=torch.channels_last) for name, m in models.items()}
    accuracies = [accuracy(m, digits) for m in models.values()]
    x, labels = digits.train_images[:BATCH], digits.train_labels[:BATCH]
    for m in models.values():
        m.train()
    speeds = images_per_second([*models.values()], x, labels)
    memories = [StepMemory(*(b / len(x) / 1e6 for b in measure(m, x))) for m in models.values()]

    lines = [f"{'':28}{'test accuracy':>14}{'images/s':>10}{'kept MB/image':>15}{'peak MB/image':>15}"]
    for name, right, speed, memory in zip(models, accuracies, speeds, memories, strict=True):
        lines.append(f"{name:28}{right:>14.2%}{speed:>10.0f}{memory.live:>15.2f}{memory.peak:>15.2f}")
    return "\n".join(lines)


def draw(out: Path, device: torch.device, backend: str, machine: str) -> Path:
    """Measure what nets of every depth keep for one image, and write memory_against_depth.png into `out`."""
    variants = {
        "stock (torch.cat, modules)": ("plain", False, CURVES["stock"]),
        "densenet_fast": (backend, False, CURVES["ours"]),
        "densenet_fast, efficient=True": (backend, True, CURVES["ours, efficient"]),
    }
    x = torch.randn(1, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    curves = {}
    with tqdm(total=len(variants) * len(DEPTHS), desc="memory against depth", unit="net") as bar:
        for label, (variant, efficient, style) in variants.items():
            points = {}
            for depth in DEPTHS:
                points[depth] = measure(net(f"bc-{depth}-12", 32).ours(variant, efficient).to(device), x).live
                bar.update()
            curves[label] = Curve(*style, points)
    return save(memory_against_depth(curves), TITLES[DEPTH], machine, out / DEPTH)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=_positive, default=5)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="auto", help="backend of densenet_fast (default: the best available)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the images")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="directory of the picture")
    args = parser.parse_args()

    keep_freed_memory()
    machine = describe(args.device)
    digits = load(args.device)
    torch.manual_seed(args.seed)
    model = densenet_fast.DenseNet(12, (6, 6, 6), in_channels=1, backend=args.backend).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"DenseNet-BC (depth 40, k=12, {parameters:,} parameters) on {len(digits.train_labels):,} scanned digits")
    train(model, digits, args.epochs)
    right = accuracy(model, digits)

    print(f"\n{compare(model, digits)}\n\n{machine}; training steps of {BATCH} images\n")
    picture = draw(args.out, args.device, args.backend, machine)
    print(f"\nmemory against depth: {picture}")
    if right < REQUIRED_ACCURACY:
        print(f"test accuracy: got {right:.2%}, expected at least {REQUIRED_ACCURACY:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
