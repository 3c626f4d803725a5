"""Heat maps of connection strengths (docs/feature_reuse.png) of a DenseNet-BC trained on scikit-learn's digits.

    python -m benchmarks.feature_reuse [--epochs 4]

Training takes some minutes; the net is the demo's (digits.py). Weight decay is stronger than the paper's, since the run
is a thousand times as short: it is what shrinks the weights that are not used.
"""

import argparse
from pathlib import Path

import torch

import densenet_fast
from densenet_fast.analyse import blocks
from densenet_fast.analyse.command import text
from densenet_fast.analyse.picture import draw

from .digits import accuracy, load, train

WEIGHT_DECAY = 0.02
PICTURE = Path(__file__).parents[1] / "docs" / "feature_reuse.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load(torch.device("cpu"))
    model = densenet_fast.create("densenet_bc_40_12", in_channels=1)
    train(model, digits, options.epochs, WEIGHT_DECAY)
    found = blocks(model.state_dict())
    draw(found, PICTURE)
    print(f"test accuracy {accuracy(model, digits):.2%}\n{text(found)}\nwritten: docs/{PICTURE.name}")


if __name__ == "__main__":
    main()
