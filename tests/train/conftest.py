"""What the tests of the commands share."""

import pytest

from densenet_fast import cli

from .runs import SMALL
from .test_data import photographs


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run on two photographs, which its net has learnt by heart."""
    root = tmp_path_factory.mktemp("photographs")
    photographs(root)
    folder = root / "run"
    options = ("--data=ImageFolder", f"--data.root={root}", "--data.image_size=32", "--data.augment=false")
    learning = ("--model.drop_rate=0", "--model.lr=0.05", "--trainer.max_epochs=30", "--data.batch_size=2")
    fixed = [option for option in SMALL if not option.startswith(("--data", "--model", "--ema", "--trainer.max"))]
    net = "--model.name=densenet_bc_10_8"
    arguments = ["fit", *fixed, net, *options, *learning, "--data.workers=0", f"--trainer.default_root_dir={folder}"]
    assert cli.main(arguments) == 0
    return folder
