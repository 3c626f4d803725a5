"""Runs of `densenet-fast fit` in processes of their own, which are forked from one that has imported what they need."""

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from densenet_fast import cli
from densenet_fast.train.checkpoints import LAST

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["densenet_fast.train.running"])

COMPARED = (
    *("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "processes"),
    *("global_step", "epoch"),
)
# Four steps of two batches an epoch; a net of nine layers, whose dropout draws from torch's generator.
SMALL = (
    *("--model.name=densenet_bc_22_4", "--model.drop_rate=0.2", "--model.schedule=cosine", "--model.warmup=0.5"),
    *("--data=Synthetic", "--data.images=60", "--data.batch_size=8", "--data.image_size=16", "--data.augment=true"),
    *("--data.workers=0", "--trainer.max_epochs=4", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--checkpoint_every=3", "--ema_decay=0.9", "--seed_everything=3", "--trainer.accumulate_grad_batches=2"),
)


def fit(folder: Path, *options: str, environment: dict[str, str] | None = None) -> multiprocessing.Process:
    """`densenet-fast fit` with these options; what it prints goes into `folder`/output.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["fit", *SMALL, f"--trainer.default_root_dir={folder}", *options]
    process = CONTEXT.Process(target=_run, args=(folder / "output.txt", arguments, environment or {}))
    process.start()
    return process


def _run(output: Path, arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    multiprocessing.set_start_method("fork", force=True)  # workers see by their parent that it was killed, and end
    torch.set_num_threads(1)
    sys.argv = ["densenet-fast", *arguments]
    sys.exit(cli.main(arguments))


def finish(process: multiprocessing.Process, folder: Path, status: int = 0) -> str:
    """What the process printed, once it has ended with this status."""
    process.join()
    told = (folder / "output.txt").read_text()
    assert process.exitcode == status, told
    return told


def wait_for_checkpoints(process: multiprocessing.Process, folder: Path, number: int) -> None:
    """Until the process has saved so many of them, or has ended."""
    last = folder / "checkpoints" / LAST
    seen = _changed(last)
    while number and process.is_alive():
        time.sleep(0.002)
        if (changed := _changed(last)) != seen:
            seen, number = changed, number - 1


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_and_resume(folder: Path, kills: int, generator: random.Random, *options: str) -> int:
    """Run to the end with kills (-9) at random moments, each behind a new checkpoint; returns how many there were."""
    for killed in range(kills):
        process = fit(folder, "--ckpt_path=last", *options)
        wait_for_checkpoints(process, folder, generator.randrange(1, 3))
        time.sleep(generator.random() * 0.1)
        if not process.is_alive():
            finish(process, folder)
            return killed
        process.kill()
        process.join()
    finish(fit(folder, "--ckpt_path=last", *options), folder)
    return kills


def difference(first: Path, second: Path) -> list[str]:
    """Keys of the tensors and numbers in which two runs' last checkpoints differ, bit by bit."""
    one, other = _values(first), _values(second)
    in_one = sorted(one.keys() ^ other.keys())
    return in_one + [key for key in one if key in other and not _equal(one[key], other[key])]


def compared(folder: Path) -> int:
    """How many tensors and numbers that are."""
    return len(_values(folder))


def _values(folder: Path) -> dict[str, Any]:
    checkpoint = torch.load(folder / "checkpoints" / LAST, weights_only=True)
    return {key: value for part in COMPARED for key, value in _leaves(checkpoint.get(part), part)}


def _leaves(value, key):
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _leaves(part, f"{key}.{i}")
    else:
        yield key, value


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        same_kind = a.dtype == b.dtype and a.shape == b.shape
        return same_kind and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b)))
    return a == b
