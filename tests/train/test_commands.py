"""fit, validate and predict as they are typed, on photographs and on what the user does wrong."""

import csv
import re

import pytest
import torch
import yaml

from densenet_fast import cli
from densenet_fast.train import commands
from densenet_fast.train.checkpoints import LAST, AtomicFiles, read
from densenet_fast.train.classifier import Classifier
from densenet_fast.train.datasets import ImageFolder
from densenet_fast.train.order import Images, Key
from densenet_fast.train.schedule import factor

from .runs import SMALL
from .test_data import PHOTOGRAPHS, photographs

# What Lightning and its friends warn of is not ours; that a block runs its plain layers would be.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:.*plain layers")]


@pytest.fixture(scope="module")
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


DAMAGES = {
    "another call for the data": (
        lambda c: c["densenet_fast"]["config"]["data"].update(class_path="os.getcwd"),
        "os.getcwd",
    ),
    "no data": (lambda c: c["densenet_fast"]["config"].pop("data"), "parts do not fit: 'data'"),
    "a weight less": (lambda c: c["state_dict"].popitem(), "parts do not fit: .*Missing key"),
    "no net": (lambda c: c.pop("hyper_parameters"), "parts do not fit: 'hyper_parameters'"),
}


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_a_checkpoint_of_another_program_is_one_sentence(command, tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    images = [str(PHOTOGRAPHS)] if command == "predict" else []
    assert cli.main([command, *images, f"--ckpt_path={tmp_path / 'other.ckpt'}"]) == 1
    assert "expected a checkpoint of `densenet-fast fit`" in (told := capsys.readouterr().err)
    assert told.count("\n") == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_predict_calls_nothing_and_trusts_nothing_of_a_checkpoint(trained, tmp_path, damage, capsys):
    checkpoint = torch.load(trained / "checkpoints" / LAST, weights_only=True)
    change, told = DAMAGES[damage]
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    assert cli.main(["predict", str(PHOTOGRAPHS), f"--ckpt_path={tmp_path / 'damaged.ckpt'}"]) == 1
    message = capsys.readouterr().err
    assert re.search(told, message)
    assert message.count("\n") == 1


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def refused(arguments, capsys, status=1):
    """The one sentence that a command ends with."""
    try:
        got = cli.main(arguments)
    except SystemExit as exit_:
        got = exit_.code
    told = capsys.readouterr().err.strip()
    assert got == status, told
    assert "\n" not in told
    assert told.startswith(f"densenet-fast {arguments[0]}: ")
    return told


def small(folder, *options):
    return ["fit", *SMALL, f"--trainer.default_root_dir={folder}", *options]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["fit", "--config=densenet_9"],
            "got 'densenet_9', expected a file or a recipe, as densenet121_imagenet",
        ),
        (["fit", "--data=Digits", "--model.lr=fast"], '"model.lr": Expected a float. Got value: fast'),
        (["fit", "--data=Digits", "--model.speed=1"], "speed"),
        (["fit", "--data=Nothing"], "Nothing"),
        (["validate"], "--ckpt_path: got none"),
        (["predict", "--ckpt_path=x"], "images"),
        (["predict", "x.png", "--ckpt_path=x", "--top=0"], "got '0', expected a number of at least 1"),
    ],
)
def test_wrong_arguments(arguments, expected, capsys):
    assert expected in refused(arguments, capsys, status=2)


def test_wrong_values_and_missing_files(tmp_path, trained, capsys):
    path = str(trained / "checkpoints" / LAST)
    net = ["fit", "--data=Digits", "--model.name=densenet_9", f"--trainer.default_root_dir={tmp_path}"]
    assert "got 'densenet_9', expected" in refused(net, capsys)
    assert "data.batch_size: got 0, expected at least 1" in refused(small(tmp_path, "--data.batch_size=0"), capsys)
    data = ["fit", "--data=CIFAR10", f"--data.root={tmp_path}", f"--trainer.default_root_dir={tmp_path}"]
    assert "cifar-10-batches-py" in refused(data, capsys)
    assert "expected a checkpoint" in refused(["validate", f"--ckpt_path={tmp_path}/x.ckpt"], capsys)
    assert "which does not exist" in refused(["predict", f"{tmp_path}/x.png", f"--ckpt_path={path}"], capsys)
    (tmp_path / "text.png").write_text("no image")
    predict = ["predict", f"{tmp_path}/text.png", f"--ckpt_path={path}"]
    assert "cannot be read as an image" in refused(predict, capsys)
    assert "--accelerator: got foo: " in refused([*predict, "--accelerator=foo"], capsys)
    csv_file = f"{tmp_path}/none/out.csv"
    told = refused([*predict, f"--csv={csv_file}"], capsys)  # before the image is read
    assert f"--csv: got {csv_file}, which cannot be written: No such file or directory" in told


def test_a_trainer_that_lightning_refuses_is_one_sentence(tmp_path, trained, capsys):
    strange = "--trainer.accelerator=foo"
    assert "trainer: You selected an invalid accelerator" in refused(small(tmp_path, strange), capsys)
    path = trained / "checkpoints" / LAST
    assert "trainer: " in refused(["validate", f"--ckpt_path={path}", strange], capsys)
    if not torch.cuda.is_available():
        assert "trainer: " in refused(small(tmp_path, "--trainer.accelerator=cuda"), capsys)
        gpu = ["predict", str(PHOTOGRAPHS), f"--ckpt_path={path}", "--accelerator=cuda"]
        assert "--accelerator: got cuda: " in refused(gpu, capsys)


def test_a_run_without_an_end_is_refused_before_it_begins(tmp_path, capsys):
    endless = ("--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00")
    assert "trainer.max_epochs: got no end of the run" in refused(small(tmp_path, *endless), capsys)
    assert not list(tmp_path.iterdir())


def test_a_run_is_neither_overwritten_nor_mixed_with_another(tmp_path, capsys):
    one_epoch = ("--trainer.max_epochs=1", "--ema_decay=null")
    assert cli.main(small(tmp_path, *one_epoch)) == 0
    last = tmp_path / "checkpoints" / LAST
    before = last.read_bytes()
    capsys.readouterr()
    assert "which has a run; add --ckpt_path last" in refused(small(tmp_path), capsys)
    best = last.with_name("best.ckpt")
    told = refused(small(tmp_path, *one_epoch, f"--ckpt_path={best}"), capsys)
    assert f"ckpt_path: got {best}, which would overwrite {last}" in told
    assert last.read_bytes() == before
    again = (*one_epoch, "--ckpt_path=last")
    for option, got, then in (
        ("--model.lr=0.2", "--model.lr: got 0.2", "has 0.1"),
        ("--data.batch_size=4", "--data.batch_size: got 4", "has 8"),
        ("--trainer.max_epochs=9", "--trainer.max_epochs: got 9", "has 1"),
        ("--seed_everything=4", "--seed_everything: got 4", "has 3"),
        ("--data=Digits", "--data.class_path: got densenet_fast.train.datasets.Digits", "Synthetic"),
    ):
        told = refused(small(tmp_path, *again, option), capsys)
        assert got in told
        assert then in told
    last.write_bytes(before[: len(before) // 2])
    assert "which is damaged or no checkpoint" in (told := refused(small(tmp_path, *again), capsys))
    assert "beside it are" in told
    assert "best.ckpt" in told
    torch.save({"weights": 1}, last)
    assert "with a state_dict" in refused(small(tmp_path, *again), capsys)


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, capsys):
    """/dev/full is where the checkpoint's unfinished file goes: its writes fail as on a full disk."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    AtomicFiles().save_checkpoint({"state_dict": {}, "number": 1}, folder / LAST)
    (folder / f".{LAST}.part").symlink_to("/dev/full")
    with pytest.raises(cli.Refused, match=r"No space left on device'; the one before it is as it was"):
        AtomicFiles().save_checkpoint({"state_dict": {}, "weights": torch.ones(1 << 20)}, folder / LAST)
    assert read(folder / LAST)["number"] == 1
    assert [path.name for path in folder.iterdir()] == [LAST]
    (folder / ".best.ckpt.part").symlink_to("/dev/full")
    (folder / LAST).unlink()
    assert "No space left on device" in refused(small(tmp_path, "--trainer.max_epochs=1"), capsys)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path, capsys):
    options = ("--model.lr=1e30", "--model.warmup=0", "--checkpoint_every=1", "--ema_decay=null")
    told = refused(small(tmp_path, *options), capsys)
    assert re.search("loss: got a number that is not finite by step [12],", told)  # it differs among machines
    assert read(tmp_path / "checkpoints" / LAST)["global_step"] == 1


def test_without_the_extra_a_command_says_what_to_install(monkeypatch, capsys):
    def missing(name, package):
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning.pytorch")

    monkeypatch.setattr(commands, "import_module", missing)
    assert "pip install '.[train]' in a checkout" in refused(["fit"], capsys)


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
