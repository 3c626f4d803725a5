"""Heat maps of connection strengths (docs/feature_reuse.png) of a DenseNet-BC trained on scikit-learn's digits.

    python -m benchmarks.feature_reuse [--epochs 6]

Training takes some minutes; the net is the demo's (digits.py). Weight decay is as much stronger than the paper's as the
run is shorter than its 230,000 steps, so that as much of the unused weights is gone.
"""

import argparse
from pathlib import Path

import torch

import densenet_fast
from densenet_fast.analyse import blocks
from densenet_fast.analyse.command import text
from densenet_fast.analyse.picture import draw

from .digits import BATCH, accuracy, load, train

DECAY_STEPS = 1e-4 * 230_000  # the paper's weight decay times its steps for CIFAR, 300 epochs of 64 images
PICTURE = Path(__file__).parents[1] / "docs" / "feature_reuse.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load(torch.device("cpu"))
    model = densenet_fast.create("densenet_bc_40_12", in_channels=1)
    steps = options.epochs * (len(digits.train_labels) // BATCH)
    train(model, digits, options.epochs, DECAY_STEPS / steps)
    found = blocks(model.state_dict())
    draw(found, PICTURE)
    print(f"test accuracy {accuracy(model, digits):.2%}\n{text(found)}\nwritten: docs/{PICTURE.name}")


if __name__ == "__main__":
    main()
