"""The demo: train a DenseNet-BC on real images, then compare it with a stock execution of the same weights.

    python -m benchmarks.digits [--epochs N] [--backend auto] [--seed 0] [--out benchmarks/out]

Training is `densenet-fast fit --config densenet_bc_40_12_digits`: scikit-learn's bundled digits, 1,797 scans of 8x8
enlarged to 32x32. One that was interrupted goes on where it was. Prints accuracy, speed and memory, and writes
memory_against_depth.png into --out, beside the run with its learning curves. The exit code is 1 if the test accuracy
is below 97 %.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import densenet_fast
from densenet_fast import cli
from densenet_fast.train.checkpoints import LAST
from densenet_fast.train.classifier import Classifier
from densenet_fast.train.datasets import Digits
from densenet_fast.train.order import Images, Key

from .machine import describe, keep_freed_memory
from .memory import StepMemory, measure
from .pictures import CURVES, DEPTH, TITLES, Curve, memory_against_depth, save
from .subjects import net

BATCH = 32
RECIPE = "densenet_bc_40_12_digits"
REQUIRED_ACCURACY = 0.97
DEPTHS = (40, 70, 100, 130, 160, 190, 220, 250)  # of the picture's nets; the paper has 40, 100, 190 and 250


def load(device: torch.device) -> tuple[Tensor, Tensor]:
    """The test images [N, 1, 32, 32], as the net is given them, and their digits [N]."""
    data = Digits()
    images = Images(data.read(train=False), data.transform(augment=False), seed=0)
    pixels, labels = zip(*(images[Key(0, i)] for i in range(len(images))), strict=True)
    stacked = torch.stack(pixels).contiguous(memory_format=torch.channels_last)
    return stacked.to(device), torch.tensor(labels, device=device)


def train(run: Path, *options: str) -> densenet_fast.DenseNet:
    """The net of a run in directory `run`, which goes on where it was; what stops the command stops the program."""
    status = cli.main(["fit", "--config", RECIPE, "--ckpt_path=last", f"--trainer.default_root_dir={run}", *options])
    if status:
        sys.exit(status)
    return Classifier.load_from_checkpoint(run / "checkpoints" / LAST, map_location="cpu", weights_only=True).net


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return sum((model(x).argmax(1) == y).sum().item() for x, y in parts) / len(labels)


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


def compare(model: densenet_fast.DenseNet, images: Tensor, digits: Tensor) -> str:
    """A table of the trained model, the same with `efficient=True`, and its layers executed the stock way."""
    models = {
        "densenet_fast": model,
        "densenet_fast, efficient": copy.deepcopy(model).set_efficient(),
        "stock (torch.cat, modules)": copy.deepcopy(model).set_backend("plain"),
    }
    models = {name: m.to(memory_format=torch.channels_last) for name, m in models.items()}
    accuracies = [accuracy(m, images, digits) for m in models.values()]
    x, labels = images[:BATCH], digits[:BATCH]
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=cli.count, help="default: the recipe's")
    parser.add_argument("--backend", default="auto", help="backend of densenet_fast (default: the best available)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the images")
    out = Path(os.path.relpath(Path(__file__).parent / "out"))
    parser.add_argument("--out", type=Path, default=out, help="directory of run and picture")
    args = parser.parse_args()

    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe(device)
    run = args.out / f"digits-{args.seed}-{args.backend}-{args.epochs or 'recipe'}"
    options = [] if args.epochs is None else [f"--trainer.max_epochs={args.epochs}"]
    options += [
        f"--seed_everything={args.seed}",
        f"--model.backend={args.backend}",
    ]
    model = train(run, *options).to(device)
    images, labels = load(device)
    right = accuracy(model, images, labels)
    print(f"\n{compare(model, images, labels)}\n\n{machine}; training steps of {BATCH} images\n")
    picture = draw(args.out, device, args.backend, machine)
    print(f"\nmemory against depth: {picture}")
    if right < REQUIRED_ACCURACY:
        print(f"test accuracy: got {right:.2%}, expected at least {REQUIRED_ACCURACY:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
