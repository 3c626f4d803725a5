"""What the user does wrong, and what goes wrong around a run: one sentence, and an exit status that is not 0."""

import re
import resource
import sys

import pytest
import torch

from densenet_fast import cli
from densenet_fast.train.checkpoints import LAST, AtomicFiles, read
from densenet_fast.train.classifier import Classifier
from densenet_fast.train.datasets import Digits, ImageFolder, Synthetic

from .runs import SMALL
from .test_data import PHOTOGRAPHS, photographs

# What Lightning and its friends warn of is not ours; that a block runs its plain layers would be.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:.*plain layers")]


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
        (["fit", "--data=Digits", "--model.lr=fast"], "--model.lr: got fast, expected a number;"),
        (["fit", "--data=Digits", "--model.schedule=linear"], "--model.schedule: got linear, expected step or cosine;"),
        (["fit", "--data=Digits", "--model.milestones=0.5"], "--model.milestones: got 0.5, expected a list;"),
        (["fit", "--data=Digits", "--model=densenet121"], "--model: got densenet121, expected a file, or an option"),
        (["fit", "--data=Digits", "--model.speed=1"], "speed"),
        (["fit", "--data=Digits", "--trainer.max_epochs=1.5"], "got 1.5, expected a whole number or null;"),
        (["fit", "--data=Digits", "--trainer.precision=8"], "got 8, expected 64, 32, 16, transformer-engine, "),
        (["fit", "--data=Digits", "--data.workers=1.5"], "--data.workers: got 1.5, expected a whole number;"),
        (["fit", "--data=Digits", "--data.download=true"], "--data.download: Digits has no such option; those that"),
        (["fit", "--data=Digits", "--data.seed=1"], "--data.seed: got it, expected --seed_everything"),
        (["fit", "--data=Digits", "--seed_everything=true"], "--seed_everything: got True, expected a whole number"),
        (["fit", "--data=Digits", "--seed_everything=-1"], "--seed_everything: got -1, expected a number from 0"),
        (["fit", "--data=os.getcwd"], "--data: got 'os.getcwd', expected CIFAR10, CIFAR100, SVHN, ImageFolder, Dig"),
        (["fit", "--data=no.Class"], "--data: got 'no.Class' (No module named 'no'), expected CIFAR10"),
        (["fit"], "--data: got none, expected CIFAR10, CIFAR100, SVHN"),
        (["fit", "--data=Nothing"], "Nothing"),
        (["validate"], "--ckpt_path: got none"),
        (["predict", "--ckpt_path=x"], "images"),
        (["predict", "x.png", "--ckpt_path=x", "--top=0"], "got '0', expected a number of at least 1"),
    ],
)
def test_wrong_arguments(arguments, expected, capsys):
    assert expected in refused(arguments, capsys, status=2)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: Classifier(lr=-1.0), "model.lr: got -1.0, expected at least 0"),
        (lambda: Classifier(weight_decay=-1.0), "model.weight_decay: got -1.0, expected at least 0"),
        (lambda: Classifier(warmup=-1.0), "model.warmup: got -1.0, expected at least 0"),
        (lambda: Classifier(momentum=1.0), "model.momentum: got 1.0, expected at least 0 and less than 1"),
        (lambda: Classifier(label_smoothing=2.0), "model.label_smoothing: got 2.0, expected at least 0 and less"),
        (lambda: Classifier(gamma=0.0), "model.gamma: got 0.0, expected more than 0"),
        (lambda: Classifier(milestones=[150, 225]), r"model.milestones: got \[150, 225\], expected parts of the run"),
        (lambda: Classifier(drop_rate=2.0), "model.drop_rate: got 2.0, expected a probability"),
        (lambda: Classifier(backend="fast"), "model.backend: got 'fast', expected one of auto, native"),
        (lambda: Classifier("densenet_9"), "model.name: got 'densenet_9', expected densenet121"),
        (lambda: Classifier(num_classes=0), "model.num_classes: got 0, expected at least 1"),
        (lambda: Synthetic(images=-1), "data.images: got -1, expected at least 1"),
        (lambda: Synthetic(num_classes=0), "data.num_classes: got 0, expected at least 1"),
        (lambda: Synthetic(image_size=0), "data.image_size: got 0, expected at least 1"),
        (lambda: ImageFolder(image_size=0), "data.image_size: got 0, expected at least 1"),
        (lambda: Digits(image_size=0), "data.image_size: got 0, expected at least 1"),
        (lambda: Digits(workers=-1), "data.workers: got -1, expected at least 0"),
    ],
)
def test_wrong_values_of_net_and_data(made, expected):
    with pytest.raises(cli.Refused, match=f"^{expected}"):
        made()


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--ema_decay=2", "ema_decay: got 2.0, expected a number from 0 to 1"),
        ("--checkpoint_every=0", "checkpoint_every: got 0, expected at least 1"),
        ("--model.warmup=5", "model.warmup: got 5.0, expected at most the run's 4 epochs"),
        ("--trainer.max_epochs=0", "trainer.max_epochs: got 0, expected at least 1"),
        ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches: got 0, expected at least 1"),
        ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: got 0, expected at least 1"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val: got -1.0, expected more than 0"),
        ("--trainer.val_check_interval=1000", "trainer: `val_check_interval` (1000) must be less than"),
        ("--trainer.overfit_batches=2", "trainer.overfit_batches: got 2, expected 0: --trainer.limit_train_batches"),
        ("--trainer.strategy=ddp_spawn", "trainer.strategy: got ddp_spawn, expected ddp or fsdp2"),
        ("--trainer.devices=-2", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        ("--trainer.accelerator=tpu", "trainer: Requirement 'torch_xla"),
        ("--trainer.precision=64-true --model.backend=native", "model.backend: backend 'native' is not available"),
        ("--data.image_size=2", "data: image too small for the poolings: got 2x2"),
        ("--trainer.default_root_dir=/dev/null/run", "/dev/null/run: got 'Not a directory', expected to read or"),
    ],
)
def test_wrong_values_of_a_run(option, expected, tmp_path, capsys):
    assert expected in refused(small(tmp_path, *option.split()), capsys)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(workers, tmp_path, capsys):
    """Also where a process of its own reads it, whose traceback comes with it."""
    photographs(tmp_path)
    damaged = tmp_path / "train" / "china" / "damaged.jpg"
    damaged.write_bytes((PHOTOGRAPHS / "china.jpg").read_bytes()[:5000])
    options = ("--data=ImageFolder", f"--data.root={tmp_path}", "--data.image_size=16", f"--data.workers={workers}")
    fixed = [option for option in SMALL if not option.startswith("--data")]
    told = refused(["fit", *fixed, *options, f"--trainer.default_root_dir={tmp_path}/run"], capsys)
    assert f"data.root: got {damaged}, which cannot be read as an image" in told


def test_memory_that_is_not_there(tmp_path, monkeypatch, capsys):
    def more(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\n See the documentation")

    monkeypatch.setattr(Classifier, "training_step", more)
    told = refused(small(tmp_path), capsys)
    assert "memory: got 'CUDA out of memory. Tried to allocate 2 GiB. See" in told
    assert "expected less: a smaller --data.batch_size or --model.efficient true" in told


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
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # so that half of a write succeeds
    try:
        with pytest.raises(cli.Refused, match="got 'File too large'; the one before it is as it was"):
            AtomicFiles().save_checkpoint({"state_dict": {}, "weights": torch.ones(1 << 20)}, folder / LAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (folder / ".best.ckpt.part").symlink_to("/dev/full")
    (folder / LAST).unlink()
    assert "No space left on device" in refused(small(tmp_path, "--trainer.max_epochs=1"), capsys)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path, capsys):
    options = ("--model.lr=1e30", "--model.warmup=0", "--checkpoint_every=1", "--ema_decay=null")
    told = refused(small(tmp_path, *options), capsys)
    assert re.search("loss: got a number that is not finite by step [12],", told)  # it differs among machines
    assert read(tmp_path / "checkpoints" / LAST)["global_step"] == 1


@pytest.mark.parametrize("module", ["lightning.pytorch.cli", "matplotlib.figure", "sklearn.datasets"])
def test_without_the_extra_a_command_says_what_to_install(module, tmp_path, monkeypatch, capsys):
    """Some are missed where the command is imported, some where the data are read."""
    for name in ("running", "showing"):
        monkeypatch.delitem(sys.modules, f"densenet_fast.train.{name}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    told = refused(["fit", "--data=Digits", f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert f"{module.partition('.')[0]} is not installed; training needs: pip install '.[train]' in a checkout" in told


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
