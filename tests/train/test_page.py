"""docs/training.md shows what the commands print where something is wrong."""

import re
from pathlib import Path

import pytest

from densenet_fast import cli

from ..test_commands import CONSOLE, printed

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.filterwarnings("ignore")
def test_the_page_shows_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = (
        "--model.name=densenet_bc_10_4",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1",
    )
    assert cli.main(["fit", "--config=densenet_bc_40_12_digits", *begun, "--trainer.enable_progress_bar=false"]) == 0
    last = Path("runs/densenet_bc_40_12_digits/checkpoints/last.ckpt")
    Path("damaged.ckpt").write_bytes(last.read_bytes()[:5000])
    shown = CONSOLE.search(PAGE.read_text().partition("## When something is wrong")[2])[1]
    for command in re.findall(r"^\$ (.*)$", shown, re.MULTILINE):
        told = re.sub(r"\[exit status [12]\]\n$", "", printed(command))
        assert f"$ {command}\n{told}" in shown
