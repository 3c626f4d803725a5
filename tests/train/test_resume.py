"""A run that is killed, stopped or refused goes on as if nothing had been: bit by bit, in processes of their own."""

import os
import random
import signal
from functools import cache

import pytest
import torch

from densenet_fast.train.checkpoints import LAST

from . import runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    runs.finish(runs.fit(folder), folder)
    return folder


def test_killed_at_random_moments_it_ends_with_the_same_bits(whole, tmp_path):
    """Reading the images in a process beside it, which is killed, too, changes nothing either."""
    assert runs.kill_and_resume(tmp_path, 2, random.Random(0), "--data.workers=1") == 2
    assert not runs.difference(whole, tmp_path)
    assert (tmp_path / "learning_curves.csv").read_text() == (whole / "learning_curves.csv").read_text()


def test_ctrl_c_saves_first(whole, tmp_path):
    process = runs.fit(tmp_path)
    runs.wait_for_checkpoints(process, tmp_path, 1)
    os.kill(process.pid, signal.SIGINT)
    told = runs.finish(process, tmp_path, 128 + signal.SIGINT)
    step = torch.load(tmp_path / "checkpoints" / LAST, weights_only=True)["global_step"]
    assert f"stopped after step {step}, which is saved" in told
    assert "Traceback" not in told
    runs.finish(runs.fit(tmp_path, "--ckpt_path=last"), tmp_path)
    assert not runs.difference(whole, tmp_path)


SCALER = (
    *("--trainer.plugins=lightning.pytorch.plugins.MixedPrecision", "--trainer.plugins.precision=16-mixed"),
    *("--trainer.plugins.device=cpu", "--trainer.plugins.scaler=torch.amp.GradScaler"),
    *("--trainer.plugins.scaler.device=cpu", "--trainer.plugins.scaler.growth_interval=2"),
)


def test_the_loss_scaler_goes_on_where_it_was(tmp_path):
    """Of half precision, which Lightning gives GPUs: here it grows every two steps whose gradients are finite."""
    options = (*SCALER, "--model.backend=eager", "--trainer.max_epochs=2", "--checkpoint_every=1", "--ema_decay=null")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    running = runs.fit(whole, *options)
    assert runs.kill_and_resume(killed, 1, random.Random(0), *options) == 1
    runs.finish(running, whole)
    scales = [
        torch.load(folder / "checkpoints" / LAST, weights_only=True)["MixedPrecision"] for folder in (whole, killed)
    ]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] != 2**16  # where it begins
    assert not runs.difference(whole, killed)


def test_behind_an_epoch_a_run_of_so_many_steps_goes_on_with_the_next(tmp_path):
    """Lightning alone would count an epoch that is empty."""
    steps = ("--trainer.max_epochs=-1", "--trainer.max_steps=18", "--checkpoint_every=null", "--ema_decay=null")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    running = runs.fit(whole, *steps)
    process = runs.fit(killed, *steps)
    runs.wait_for_checkpoints(process, killed, 1)
    process.kill()
    process.join()
    assert torch.load(killed / "checkpoints" / LAST, weights_only=True)["global_step"] % 4 == 0
    runs.finish(runs.fit(killed, "--ckpt_path=last", *steps), killed)
    runs.finish(running, whole)
    assert not runs.difference(whole, killed)


COMPILED = ("--model.compile=true", "--model.name=densenet_bc_10_4", "--trainer.limit_val_batches=0")


@pytest.mark.parametrize("options", [("--trainer.precision=bf16-mixed",), COMPILED], ids=["mixed", "compiled"])
def test_in_mixed_precision_or_compiled_it_goes_on_as_exactly(options, tmp_path):
    options += ("--trainer.max_epochs=2", "--checkpoint_every=1", "--ema_decay=null")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    running = runs.fit(whole, *options)
    assert runs.kill_and_resume(killed, 1, random.Random(0), *options) == 1
    runs.finish(running, whole)
    assert not runs.difference(whole, killed)


SHARED = (
    *("--model.drop_rate=0", "--model.lr=0.01", "--model.backend=eager", "--ema_decay=null"),
    *("--trainer.max_epochs=2", "--checkpoint_every=3"),
)


def pair(folder, *options):
    port = str(random.Random().randrange(20000, 40000))
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0"}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [runs.fit(folder, *options, environment=place) for place in places]


def weights(folder):
    state = torch.load(folder / "checkpoints" / LAST, weights_only=True)["state_dict"]
    return torch.cat([state[key].double().flatten() for key in sorted(state)])


def error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The weights that a run ends with, by its strategy and precision: two processes, through what torchrun sets, or,
    of no strategy, one with the doubled batch. That of FSDP2 is killed once and resumed."""

    @cache
    def found(strategy, precision):
        folder = tmp_path_factory.mktemp("run")
        options = (*SHARED, f"--trainer.precision={precision}")
        if strategy is None:
            runs.finish(runs.fit(folder, *options, "--data.batch_size=16"), folder)
            return weights(folder)
        options += (f"--trainer.strategy={strategy}", "--trainer.devices=2", "--trainer.sync_batchnorm=true")
        processes = pair(folder, *options)
        if strategy == "fsdp2":
            runs.wait_for_checkpoints(processes[0], folder, 1)
            for process in processes:
                process.kill()
                process.join()
            processes = pair(folder, *options, "--ckpt_path=last")
        for process in processes:
            runs.finish(process, folder)
        return weights(folder)

    return found


def rounding(ended):
    """How far two processes in single precision are from double precision: what rounding makes of these steps."""
    return error(ended("ddp", "32-true"), ended("ddp", "64-true"))


def test_two_processes_are_one_with_the_doubled_batch(ended):
    """Augmentation, order and synchronised norms are the same, and so, to double precision's rounding, are weights."""
    finer = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    assert error(ended("ddp", "64-true"), ended(None, "64-true")) <= rounding(ended) * finer


def test_fsdp2_is_ddp(ended):
    """It knows no double precision: it differs from DDP in single precision less than that does from double."""
    assert error(ended("fsdp2", "32-true"), ended("ddp", "32-true")) <= rounding(ended)
