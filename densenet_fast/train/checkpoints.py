"""Nothing is lost: checkpoints that are whole or not there, and all that a run needs to go on as if never stopped."""

import os
import pickle
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed
from torchmetrics import MeanMetric

from ..cli import Refused

LAST = "last.ckpt"


class AtomicFiles(CheckpointIO):
    """Checkpoints are written beside their place, forced onto the disk, and renamed: nobody ever reads half of one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the rename, too, is to outlast a power cut
            os.close(folder)
        except (OSError, RuntimeError) as error:  # RuntimeError: of torch.save, around that of a write that fails
            part.unlink(missing_ok=True)
            reason = error if isinstance(error, OSError) else error.__context__
            why = reason.strerror if isinstance(reason, OSError) else _first_line(error)
            kept = f"the one before it is as it was ({path})" if path.exists() else "there was none before it"
            raise Refused(f"a checkpoint could not be written: got {why!r}; {kept}") from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: Any = True
    ) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, on the CPU; nothing in it is executed.

    Raises:
        Refused: there is none, or it is damaged.
    """
    if not path.is_file():
        raise Refused(f"ckpt_path: got {str(path)!r}, expected a checkpoint, which is a file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        others = sorted(str(other) for other in path.parent.glob("*.ckpt") if other != path)
        hint = f"; beside it are {', '.join(others)}" if others else ""
        why = "more than weights is in it" if isinstance(error, pickle.UnpicklingError) else _first_line(error)
        raise Refused(f"ckpt_path: got {path}, which is damaged or no checkpoint ({why}){hint}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise Refused(f"ckpt_path: got {path}, expected a checkpoint of `densenet-fast fit`, with a state_dict")
    return checkpoint


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class Processes(Callback):
    """Keeps what each process has of its own: the states of torch's, numpy's and Python's random generators, and the
    sums of an epoch's means so far."""

    def __init__(self) -> None:
        self.to_restore: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        epochs = trainer.fit_loop.epoch_progress.current
        own = {"generators": _generators()}
        if epochs.processed < epochs.started:  # within an epoch
            own["means"] = {name: mean.metric_state for name, mean in _means(pl_module)}
        checkpoint["processes"] = [own]
        if distributed.is_initialized():
            checkpoint["processes"] = [{} for _ in range(trainer.world_size)]
            distributed.all_gather_object(checkpoint["processes"], own)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.to_restore = checkpoint["processes"][trainer.global_rank]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Before the first step: what comes before it, in a run that is resumed, has drawn numbers of its own."""
        if self.to_restore is None:
            return
        own, self.to_restore = self.to_restore, None
        _restore_generators(own["generators"])
        means = dict(_means(pl_module))
        for name, state in own.get("means", {}).items():
            for key, value in state.items():
                setattr(means[name], key, value.to(pl_module.device))


def _means(module: LightningModule) -> Iterator[tuple[str, MeanMetric]]:
    return ((name, child) for name, child in module.named_modules() if isinstance(child, MeanMetric))


def _generators() -> dict[str, Any]:
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - that of code which does not know generators
    state["numpy"] = name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


class Stopped(Exception):
    """The user's signal, after everything was saved."""

    def __init__(self, signum: int, path: Path, step: int):
        super().__init__(f"stopped after step {step}, which is saved; to go on, add --ckpt_path last ({path})")
        self.signum = signum


class Last(Checkpoint):
    """Saves `last.ckpt` after every epoch, every so many steps, and before SIGINT and SIGTERM end the run.

    Lightning's ModelCheckpoint does one or the other, and what it saves behind an epoch's last step, before the
    validation, resumes with an epoch that is empty.
    """

    def __init__(self, folder: Path, every_n_steps: int | None):
        if every_n_steps is not None and every_n_steps < 1:
            raise Refused(f"checkpoint_every: got {every_n_steps}, expected at least 1")
        self.path, self.every_n_steps = folder / LAST, every_n_steps
        self.signum: int | None = None
        self.replaced: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where max_steps is set, too, what was saved behind an epoch goes on with the next one, not with one that is
        empty."""
        trainer.fit_loop._iteration_based_training = lambda: False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self.replaced[signum] = signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        """The first time note it, the second time end at once."""
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        print("\nsaving behind this step; once more to end without", flush=True)

    def _restore(self) -> None:
        for signum, handler in self.replaced.items():
            signal.signal(signum, handler)
        self.replaced = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the epoch's end is near; gradients in the making are not saved
        stop = self._is_to_stop(trainer)
        if stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.path)
        if stop:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        if self._is_to_stop(trainer):
            self._stop(trainer)

    def _is_to_stop(self, trainer: Trainer) -> bool:
        """Whether any process has received a signal: all of them save together."""
        if trainer.world_size == 1:
            return self.signum is not None
        return trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False)

    def _stop(self, trainer: Trainer) -> NoReturn:
        raise Stopped(self.signum or signal.SIGTERM, self.path, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()


class FiniteLoss(Callback):
    """Ends a run whose loss is no finite number; what is saved is from before.

    Asking an accelerator costs time that it stands still: there, only before saving and now and then.
    """

    def __init__(self, every_n_steps: int = 50):
        self.every_n_steps = every_n_steps
        self.is_finite: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        is_finite = torch.isfinite(outputs["loss"])
        self.is_finite = is_finite if self.is_finite is None else self.is_finite & is_finite
        if is_finite.device.type == "cpu" or trainer.global_step % self.every_n_steps == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self.is_finite is not None and not self.is_finite:
            raise Refused(
                f"loss: got a number that is not finite by step {trainer.global_step}, expected finite ones; lower "
                "--model.lr or add --model.warmup, and go on from the last checkpoint or anew"
            )
