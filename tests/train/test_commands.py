"""fit, validate and predict as they are typed, on photographs and on what the user does wrong."""

import csv
import re

import pytest
import torch
import yaml

from densenet_fast import cli
from densenet_fast.train import commands
from densenet_fast.train.checkpoints import LAST
from densenet_fast.train.classifier import Classifier
from densenet_fast.train.datasets import ImageFolder
from densenet_fast.train.order import Images, Key
from densenet_fast.train.schedule import factor

from .runs import SMALL
from .test_data import PHOTOGRAPHS

# What Lightning and its friends warn of is not ours; that a block runs its plain layers would be.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:.*plain layers")]


def test_a_run_leaves_its_configuration_logs_curves_and_checkpoints(trained):
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {"config.yaml", "learning_curves.png", "learning_curves.csv", "csv/version_0/metrics.csv"} <= names
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (trained / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    rows = table(trained / "learning_curves.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(1, 31))
    assert float(rows[-1]["train_error"]) == float(rows[-1]["val_error"]) == 0


def test_validate_takes_net_and_data_from_the_checkpoint_and_leaves_the_run_as_it_is(
    trained, tmp_path, monkeypatch, capsys
):
    path, before = trained / "checkpoints" / LAST, contents(trained)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["validate", f"--ckpt_path={path}", "--data.ten_crop=true", "--trainer.accelerator=cpu"]) == 0
    assert "val_error" in (told := capsys.readouterr().out)
    assert "0.0" in told
    assert contents(trained) == before
    assert not list(tmp_path.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["--trainer.fast_dev_run=true", "--trainer.enable_checkpointing=false"])
def test_a_trial_leaves_no_checkpoint(option, tmp_path, capsys):
    options = (*SMALL, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}")
    assert cli.main(["fit", *options, option]) == 0
    told = capsys.readouterr().out
    if "fast_dev_run" in option:
        assert "on Synthetic; nothing is kept\nepoch 1: " in told
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_bar_shows_loss_error_speed_and_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    fixed = [option for option in SMALL if not option.startswith(("--trainer.max", "--trainer.enable_progress"))]
    options = (*fixed, "--model.name=densenet_bc_10_4", "--trainer.max_epochs=1", "--ema_decay=null")
    assert cli.main(["fit", *options, f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]) == 0
    shown = capsys.readouterr()
    bar = [line for line in re.split(r"[\r\n]", shown.out + shown.err) if "8/8" in line][-1]
    assert re.search(r"loss=[\d.]+, error=[\d.]+%, images/s=[\d.]+, peak=[\d.]+ GB, val_error=[\d.]+%", bar), bar


def test_ten_crops_are_averaged_over_their_probabilities(trained):
    model = Classifier.load_from_checkpoint(trained / "checkpoints" / LAST, weights_only=True).eval()
    data = ImageFolder(str(trained.parent), image_size=32, ten_crop=True)
    crops = Images(data.read(train=False), data.transform(augment=False), 0)[Key(0, 0)][0]
    with torch.no_grad():
        together = model(crops[None]).softmax(1)
        torch.testing.assert_close(together[0], model(crops).softmax(1).mean(0), rtol=1e-5, atol=1e-6)


def test_predict_names_the_classes_of_files(trained, tmp_path, capsys):
    path, out = trained / "checkpoints" / LAST, tmp_path / "out.csv"
    arguments = ["predict", str(PHOTOGRAPHS), "--ckpt_path", str(path), "--csv", str(out), "--accelerator", "cpu"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == ["china", "flower"]
    rows = table(out)
    assert len(rows) == 4
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(2, abs=1e-3)


def test_predict_prints_a_file_as_often_as_it_is_given(trained, capsys):
    china = str(PHOTOGRAPHS / "china.jpg")
    arguments = ["predict", china, china, f"--ckpt_path={trained / 'checkpoints' / LAST}", "--accelerator=cpu"]
    assert cli.main([*arguments, "--top=1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.count("%") == 1


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", commands.recipes())
def test_recipes_are_the_paper_s(name):
    """They can be parsed, and each is what the paper says of its row."""
    recipe = yaml.safe_load((commands.RECIPES / f"{name}.yaml").read_text())
    net, _, data = name.rpartition("_")
    assert recipe["model"]["name"] == net
    assert recipe["trainer"]["default_root_dir"] == f"runs/{name}"
    if data == "digits":
        return
    kind = data.rstrip("+")
    epochs, batch = {"cifar10": (300, 64), "cifar100": (300, 64), "svhn": (40, 64), "imagenet": (90, 256)}[kind]
    assert recipe["trainer"]["max_epochs"] == epochs
    options = recipe["data"]["init_args"]
    assert options["batch_size"] == batch
    assert recipe["data"]["class_path"].rpartition(".")[2].lower() == {"imagenet": "imagefolder"}.get(kind, kind)
    augmented = data.endswith("+") or kind == "imagenet"
    assert options["augment"] == augmented
    assert recipe["model"].get("drop_rate", 0) == (0 if augmented else 0.2)


def test_the_learning_rate_is_divided_twice_or_follows_a_cosine():
    settings = {"schedule": "step", "milestones": (1 / 2, 3 / 4), "gamma": 0.1}
    steps = [factor(step, total=300 * 782, warmup=0, **settings) for step in (0, 150 * 782 - 1, 150 * 782, 225 * 782)]
    assert steps == pytest.approx([1, 1, 0.1, 0.01])
    imagenet = {**settings, "milestones": (0.33333333, 0.66666666)}
    assert [factor(s, 90 * 5005, 0, **imagenet) for s in (30 * 5005 - 1, 30 * 5005, 60 * 5005)] == pytest.approx(
        [1, 0.1, 0.01]
    )
    cosine = {**settings, "schedule": "cosine"}
    assert [factor(s, 110, 10, **cosine) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for step in range(100):
        assert factor(step, 100, 0, **cosine) == pytest.approx(torchs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        torchs.step()
