"""A run that is killed, stopped or refused goes on as if nothing had been: bit by bit, in processes of their own."""

import os
import random
import signal

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


# FSDP2 knows no double precision: four small steps of single precision, whose rounding the norms carry on.
STRATEGIES = {
    "ddp": (("--trainer.precision=64-true",), 1e-12),
    "fsdp2": (("--trainer.precision=32-true", "--model.lr=0.01"), 100 * torch.finfo(torch.float32).eps),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_are_one_with_the_doubled_batch(strategy, tmp_path):
    """Through what torchrun sets: augmentation, order and synchronised norms are the same."""
    own, bound = STRATEGIES[strategy]
    options = ("--model.drop_rate=0", "--ema_decay=null", "--model.backend=eager", "--trainer.max_epochs=2", *own)
    one, two = tmp_path / "one", tmp_path / "two"
    process = runs.fit(one, *options, "--data.batch_size=16", "--checkpoint_every=null")
    port = str(random.Random().randrange(20000, 40000))
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0"}
    parallel = (f"--trainer.strategy={strategy}", "--trainer.devices=2", "--trainer.sync_batchnorm=true")
    pair = [
        runs.fit(two, *options, *parallel, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    for running, folder in [(process, one), *((p, two) for p in pair)]:
        runs.finish(running, folder)
    a, b = (torch.load(f / "checkpoints" / LAST, weights_only=True)["state_dict"] for f in (one, two))
    assert a.keys() == b.keys()
    one_s, two_s = (torch.cat([value.double().flatten() for value in weights.values()]) for weights in (a, b))
    error = (one_s - two_s).norm() / one_s.norm()
    assert error < bound
