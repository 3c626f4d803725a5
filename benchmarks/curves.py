"""Learning curves of ours and of stock layers, several seeds of each, on the bundled digits.

    python -m benchmarks.curves [--seeds 5] [--epochs N] [--out benchmarks/out/curves]

Each run is the recipe densenet_bc_40_12_digits, once on the fused path and once with `--model.backend plain`, which is
torch.cat and the modules under ordinary autograd. A run that was interrupted goes on where it was. Prints the last
epochs' validation errors and writes curves.png and curves.csv; the exit code is 1 if the mean of ours, in any epoch of
the last half, is outside the range of stock's seeds widened by a standard deviation of them.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path

import torch

from densenet_fast import cli

RECIPE = "densenet_bc_40_12_digits"
VARIANTS = {"densenet_fast": "auto", "stock": "plain"}
Curves = dict[str, list[list[float]]]  # validation error in percent, of each variant's seeds, by epoch


def run(folder: Path, seed: int, backend: str, options: list[str]) -> list[float]:
    """Validation error of every epoch, in percent; a run that has ended is only read."""
    table = folder / "learning_curves.csv"
    if not table.exists():
        place = f"--trainer.default_root_dir={folder}"
        arguments = ["fit", "--config", RECIPE, place, f"--seed_everything={seed}", f"--model.backend={backend}"]
        status = cli.main([*arguments, "--ckpt_path=last", *options])
        if status:
            sys.exit(status)
    with open(table, newline="") as file:
        return [float(row["val_error"]) for row in csv.DictReader(file)]


def outside(curves: Curves) -> list[int]:
    """Epochs of the last half, from 1, in which the mean of ours is out of stock's spread."""
    ours, stock = ([*zip(*curves[name], strict=True)] for name in VARIANTS)
    found = []
    for epoch, (us, them) in enumerate(zip(ours, stock, strict=True), 1):
        slack = statistics.stdev(them) if len(them) > 1 else 0.0
        if epoch > len(ours) // 2 and not min(them) - slack <= statistics.mean(us) <= max(them) + slack:
            found.append(epoch)
    return found


def draw(curves: Curves, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, seeds), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        by_epoch = [*zip(*seeds, strict=True)]
        epochs = range(1, len(by_epoch) + 1)
        means = [statistics.mean(values) for values in by_epoch]
        axes.plot(epochs, means, color=colour, label=f"{name}, mean of {len(seeds)} seeds, at last {means[-1]:.2f} %")
        axes.fill_between(epochs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=colour, alpha=0.2)
    axes.set(xlabel="epoch", ylabel="validation error, %", yscale="symlog", title="DenseNet-BC (40, 12) on the digits")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=cli.count, default=5)
    parser.add_argument("--epochs", type=cli.count, help="of each run (default: the recipe's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "curves")
    args = parser.parse_args()
    options = [] if args.epochs is None else [f"--trainer.max_epochs={args.epochs}"]
    options += ["--trainer.enable_progress_bar=false"]
    curves: Curves = {name: [] for name in VARIANTS}
    for seed in range(args.seeds):
        for name, backend in VARIANTS.items():  # in turns
            folder = args.out / f"{name}-{seed}-{args.epochs or 'recipe'}"
            curves[name].append(run(folder, seed, backend, options))
    with open(args.out / "curves.csv", "w", newline="") as file:
        rows = [(n, s, e, v) for n, seeds in curves.items() for s, c in enumerate(seeds) for e, v in enumerate(c, 1)]
        csv.writer(file).writerows([("variant", "seed", "epoch", "val_error"), *rows])
    draw(curves, args.out / "curves.png")
    for name, seeds in curves.items():
        last = [curve[-1] for curve in seeds]
        print(f"{name:14} {statistics.mean(last):.2f} % on average, {min(last):.2f} to {max(last):.2f} %")
    wrong = outside(curves)
    print(f"{torch.get_num_threads()} threads; epochs outside stock's spread: {wrong or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
