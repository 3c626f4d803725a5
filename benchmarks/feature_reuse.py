"""Heat maps of connection strengths (docs/feature_reuse.png) of a DenseNet-BC trained on scikit-learn's digits.

    python -m benchmarks.feature_reuse [--epochs 12]

Training takes some minutes; the net is the demo's (digits.py). Weight decay is stronger than the paper's, since the run
is a thousand times as short: it is what shrinks the weights that are not used.
"""

import argparse
from pathlib import Path

import torch

from densenet_fast import cli
from densenet_fast.analyse import blocks
from densenet_fast.analyse.command import text
from densenet_fast.analyse.picture import draw

from .digits import accuracy, load, train

WEIGHT_DECAY = 0.02
PICTURE = Path(__file__).parents[1] / "docs" / "feature_reuse.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=cli.count, default=12)
    out = "directory of the run; the picture goes into docs/"
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help=out)
    arguments = parser.parse_args()
    options = f"--trainer.max_epochs={arguments.epochs}", f"--model.weight_decay={WEIGHT_DECAY}"
    model = train(arguments.out / f"feature-reuse-{arguments.epochs}", "--seed_everything=0", *options)
    found = blocks(model.state_dict())
    draw(found, PICTURE)
    print(
        f"test accuracy {accuracy(model, *load(torch.device('cpu'))):.2%}\n{text(found)}\nwritten: docs/{PICTURE.name}"
    )


if __name__ == "__main__":
    main()
