"""Learning curves of ours and of stock layers, several seeds of each, on the bundled digits.

    python -m benchmarks.curves [--seeds 5] [--epochs 6] [--image 16] [--out benchmarks/out/curves] [--save]

Each run is the recipe densenet_bc_40_12_digits made shorter: on smaller images, in fewer epochs, over which warm-up and
cosine then go; once on the fused path and once with `--model.backend plain`, which is torch.cat and the modules under
ordinary autograd. All ten take some ten minutes of processor time (the whole recipe, --epochs 12 --image 32, more than
an hour); one that was interrupted goes on where it was. Writes every epoch's validation error (curves.json) and a
picture (curves.png) into --out, and with --save those that the documentation shows, into benchmarks/results and docs.
The exit code is 1 if the mean of ours is, in any epoch, outside the range of stock's seeds.
"""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from densenet_fast import cli

from .machine import describe

RECIPE = "densenet_bc_40_12_digits"
VARIANTS = {"densenet_fast": "auto", "stock": "plain"}
RESULTS = Path(__file__).parent / "results" / "curves.json"
PICTURE = Path(__file__).parents[1] / "docs" / "curves_of_five_seeds.png"
Curves = dict[str, list[list[float]]]  # validation error in percent, of each variant's seeds, by epoch


def run(folder: Path, seed: int, backend: str, epochs: int, image: int) -> list[float]:
    """Validation error of every epoch, in percent; a run that has ended is only read."""
    table = folder / "learning_curves.csv"
    if not table.exists():
        place = f"--trainer.default_root_dir={folder}"
        arguments = ["fit", "--config", RECIPE, place, f"--seed_everything={seed}", f"--model.backend={backend}"]
        short = [f"--trainer.max_epochs={epochs}", f"--data.image_size={image}"]
        status = cli.main([*arguments, "--ckpt_path=last", *short, "--trainer.enable_progress_bar=false"])
        if status:
            sys.exit(status)
    with open(table, newline="") as file:
        return [float(row["val_error"]) for row in csv.DictReader(file)]


def outside(curves: Curves) -> list[int]:
    """Epochs, from 1, in which the mean of ours is out of stock's range."""
    ours, stock = ([*zip(*curves[name], strict=True)] for name in VARIANTS)
    pairs = enumerate(zip(ours, stock, strict=True), 1)
    return [epoch for epoch, (us, them) in pairs if not min(them) <= statistics.mean(us) <= max(them)]


def draw(curves: Curves, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, seeds), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        by_epoch = [*zip(*seeds, strict=True)]
        epochs = range(1, len(by_epoch) + 1)
        means = [statistics.mean(values) for values in by_epoch]
        label = f"{name}, mean of {len(seeds)} seeds, at last {means[-1]:.2f} %"
        axes.plot(epochs, means, color=colour, label=label, marker="o", markersize=4)
        axes.fill_between(epochs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=colour, alpha=0.2)
    axes.set(xlabel="epoch", ylabel="validation error, %", title="DenseNet-BC (40, 12) on the digits")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=cli.count, default=5)
    parser.add_argument("--epochs", type=cli.count, default=6, help="of each run (default: 6; the recipe has 12)")
    parser.add_argument("--image", type=cli.count, default=16, help="side of images (default: 16; the recipe has 32)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "curves")
    parser.add_argument("--save", action="store_true", help="also for the documentation")
    args = parser.parse_args()
    curves: Curves = {name: [] for name in VARIANTS}
    for seed in range(args.seeds):
        for name, backend in VARIANTS.items():  # in turns
            folder = args.out / f"{name}-{seed}-{args.epochs}-{args.image}"
            curves[name].append(run(folder, seed, backend, args.epochs, args.image))
    wrong = outside(curves)
    found: dict[str, Any] = {
        "machine": describe(torch.device("cpu")),
        "recipe": RECIPE,
        "epochs": args.epochs,
        "image": args.image,
        "validation error, %": curves,
        "epochs in which the mean of ours is outside stock's range": wrong,
    }
    for table, picture in [(args.out / "curves.json", args.out / "curves.png"), (RESULTS, PICTURE)][: 1 + args.save]:
        table.write_text(json.dumps(found, indent=1) + "\n")
        draw(curves, picture)
    for name, seeds in curves.items():
        last = [curve[-1] for curve in seeds]
        print(f"{name:14} {statistics.mean(last):.2f} % on average, {min(last):.2f} to {max(last):.2f} %")
    print(f"{found['machine']}; epochs outside stock's range: {wrong or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
