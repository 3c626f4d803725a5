"""`densenet-fast fit` and `validate`: Lightning's command line around the Trainer, with what every run has."""

import json
import logging
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from .. import backends
from ..cli import PROGRAM, Parser, Refused
from . import datasets
from .checkpoints import LAST, AtomicFiles, FiniteLoss, Last, Processes, Stopped, read
from .classifier import Classifier
from .data import ImageData
from .parallel import FullySharded, SynchronisedNorms
from .showing import Bar, LearningCurves
from .told import expect, of_parser, of_worker, one_line

# What may differ between a run and its continuation: where and how it is computed, not what.
MAY_CHANGE = re.compile(r"data\.init_args\.(root|workers|download)|model\.(backend|efficient|compile|channels_last)")
MUST_STAY = re.compile(
    r"(model|data|seed_everything|ema_decay)\b|trainer\.(max_epochs|max_steps|precision|accumulate_grad_batches|"
    r"gradient_clip_val|limit_train_batches|sync_batchnorm)$"
)
# Options of Lightning's Trainer that cannot be had, and why.
NOT_HERE = {
    "barebones": "a run keeps logs and checkpoints",
    "overfit_batches": "--trainer.limit_train_batches takes a part of the images",
    "use_distributed_sampler": "each process has its part of the images already",
}
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}  # of activations, by the precision
ENTRY = "densenet_fast"  # of a checkpoint: the configuration, the names of the classes, the number of processes


class Configuration(SaveConfigCallback):
    """Writes config.yaml into the run's folder, and what `validate` and `predict` need into its checkpoints."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """`validate` leaves a run as it is."""
        if stage == "fit" and not trainer.fast_dev_run:
            super().setup(trainer, pl_module, stage)

    def plain(self) -> dict[str, Any]:
        """What was chosen, in types of JSON."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        names = list(getattr(trainer.datamodule, "class_names", []))
        checkpoint[ENTRY] = {"config": self.plain(), "class_names": names, "processes": trainer.world_size}


class Command(LightningCLI):
    """Lightning's command line with the net, the data and the callbacks that make a run."""

    def __init__(self, arguments: list[str]):
        super().__init__(
            Classifier,
            ImageData,
            save_config_callback=Configuration,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
            },
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"exit_on_error": False, "prog": PROGRAM},
            args=arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        both = {"model", "datamodule", "weights_only"}
        return {"fit": both | {"train_dataloaders", "val_dataloaders"}, "validate": both | {"dataloaders", "verbose"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint_every", type=int | None, help="optimizer steps between checkpoints within an epoch"
        )
        parser.add_argument(
            "--ema_decay", type=float | None, help="validate and save an exponential average of the weights, as 0.999"
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        for name in ("num_classes", "in_channels"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for name, subparser in self._subcommand_parsers.items():
            subparser.prog = f"{PROGRAM} {name}"
        refuse = Parser(prog=f"{PROGRAM} {args[0]}").error
        try:
            self.config = parser.parse_args(args)
            for argument in args:
                if re.match(r"--data\.(init_args\.)?seed\b", argument):
                    refuse("--data.seed: got it, expected --seed_everything, which it follows")
        except jsonargparse.ArgumentError as error:
            names = [name for name in vars(datasets) if _is_data(getattr(datasets, name))]
            refuse(of_parser(str(error), names))
        seed = self.config[args[0]].seed_everything  # which Lightning uses next
        if not 0 <= seed < 2**32:
            refuse(f"--seed_everything: got {seed}, expected a number from 0 to 4294967295")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's configuration win over the command line's; see `_check_same`."""

    def before_instantiate_classes(self) -> None:
        self.chosen = self.config[self.subcommand]
        trainer, model, data = self.chosen.trainer, self.chosen.model, self.chosen.data
        if trainer.default_root_dir is None:
            trainer.default_root_dir = f"runs/{model.name}-{data.class_path.rpartition('.')[2]}"
        self.folder = Path(trainer.default_root_dir)
        self._check()
        if self.subcommand == "fit" and not trainer.fast_dev_run:
            last = self.folder / "checkpoints" / LAST
            path = self.chosen.ckpt_path
            if path == "last":
                self.chosen.ckpt_path = str(last) if last.exists() else None
            elif path is None and last.exists():
                raise Refused(
                    f"trainer.default_root_dir: got {str(self.folder)!r}, which has a run; add --ckpt_path last to go "
                    "on with it, or choose another folder"
                )
            elif last.exists() and Path(path).resolve() != last.resolve():
                raise Refused(
                    f"ckpt_path: got {path}, which would overwrite {last}; add --ckpt_path last to go on with that, or "
                    "choose another --trainer.default_root_dir"
                )

    def _check(self) -> None:
        """Refuse what Lightning would not, or in a traceback, or behind a part of the run."""
        chosen = self.chosen
        trainer = chosen.trainer
        if chosen.ema_decay is not None:
            expect(0 <= chosen.ema_decay <= 1, "ema_decay", chosen.ema_decay, "a number from 0 to 1")
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "max_epochs", "max_steps"):
            value = trainer[name]
            is_endless = value == -1 and name.startswith("max")
            expect(value is None or is_endless or value >= 1, f"trainer.{name}", value, "at least 1")
        for name in ("gradient_clip_val", "val_check_interval", "limit_train_batches"):
            value = trainer[name]
            expect(not isinstance(value, int | float) or value > 0, f"trainer.{name}", value, "more than 0")
        strategy = str(trainer.strategy)
        expect(not strategy.endswith(("_spawn", "_fork", "_notebook")), "trainer.strategy", strategy, "ddp or fsdp2")
        for name, reason in NOT_HERE.items():
            value = trainer[name]
            expect(not value, f"trainer.{name}", value, f"{json.dumps(type(value)())}: {reason}")

    def instantiate_classes(self) -> None:
        """jsonargparse wraps what a class refuses."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, Refused):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        chosen, folder = self.config_init[self.subcommand], self.folder
        options = {**chosen.trainer, **kwargs}
        callbacks = [*_listed(options["callbacks"]), Processes(), FiniteLoss()]
        if options["enable_progress_bar"] is not False:
            callbacks.append(Bar(leave=False))
        is_kept = self.subcommand == "fit" and not options["fast_dev_run"]
        if is_kept:
            title = f"{chosen.model.hparams['name']} on {type(self.datamodule).__name__}"
            callbacks.append(LearningCurves(folder, title))
            if options["enable_checkpointing"] is not False:
                best = ModelCheckpoint(
                    folder / "checkpoints", "best", monitor="val_error", enable_version_counter=False
                )
                callbacks += [Last(folder / "checkpoints", chosen.checkpoint_every), best]
        if chosen.ema_decay is not None:
            callbacks.append(EMAWeightAveraging(decay=chosen.ema_decay))
        if options["strategy"] == "fsdp2":
            if chosen.ema_decay is not None:
                raise Refused(
                    "ema_decay: got it with trainer.strategy fsdp2, whose weights are in parts; leave one out"
                )
            options["strategy"] = FullySharded()
        if options["sync_batchnorm"]:
            options["sync_batchnorm"] = False
            callbacks.append(SynchronisedNorms())
        if options["logger"] is None:
            options["logger"] = is_kept and [
                TensorBoardLogger(folder, name="", version=""),
                CSVLogger(folder, name="csv"),
            ]
        options["plugins"] = [*_listed(options["plugins"]), AtomicFiles()]
        try:
            return self._instantiate_trainer({**options, "callbacks": callbacks}, [])
        except (ImportError, TypeError, ValueError) as error:
            raise Refused(f"trainer: {one_line(str(error))}") from error

    def after_instantiate_classes(self) -> None:
        path = self.chosen.ckpt_path
        if self.subcommand == "fit" and path is not None:
            self._check_same(trained(Path(path)), path)

    def _check_same(self, checkpoint: dict[str, Any], path: str) -> None:
        """Refuse to go on with another net, other data or another schedule than the checkpoint's."""
        entry = checkpoint[ENTRY]
        config = next(c for c in self.trainer.callbacks if isinstance(c, Configuration)).plain()
        then, now = _flat(entry["config"]), _flat(config)
        then["processes"], now["processes"] = entry["processes"], self.trainer.world_size
        for key in sorted(then.keys() | now.keys()):
            decides = key == "processes" or (MUST_STAY.match(key) and not MAY_CHANGE.fullmatch(key))
            if decides and then.get(key) != now.get(key):
                option = f"--{key.replace('.init_args', '')}"
                raise Refused(
                    f"{option}: got {now.get(key)}, but the run of {path} has {then.get(key)}; go on with the "
                    "same, or start another run in another --trainer.default_root_dir"
                )

    def before_fit(self) -> None:
        if self.trainer.max_epochs == self.trainer.max_steps == -1:
            raise Refused(
                "trainer.max_epochs: got no end of the run, expected --trainer.max_epochs or --trainer.max_steps, "
                "which the learning rate's schedule needs"
            )
        warmup, epochs = self.model.hparams["warmup"], self.trainer.max_epochs
        has_room = epochs in (None, -1) or warmup <= epochs or self.trainer.fast_dev_run
        expect(has_room, "model.warmup", warmup, f"at most the run's {epochs} epochs")
        self._check_backend()
        net, data = self.model.net, self.datamodule
        parameters = sum(p.numel() for p in net.parameters())
        if self.trainer.is_global_zero:
            what = f"{self.model.hparams['name']}, {parameters:,} parameters, on {type(data).__name__}"
            where = "nothing is kept" if self.trainer.fast_dev_run else f"the run is in {self.folder}"
            print(f"{what}; {where}", flush=True)

    def before_validate(self) -> None:
        self._check_backend()

    def _check_backend(self) -> None:
        backend, precision = self.model.hparams["backend"], str(self.trainer.precision)
        if backend != "plain":
            dtype = next((DTYPES[bits] for bits in DTYPES if precision.startswith(bits)), torch.float32)
            try:
                backends.choose(backend, self.trainer.strategy.root_device, dtype)
            except RuntimeError as error:
                raise Refused(f"model.backend: {error}") from None

    def after_fit(self) -> None:
        if self.trainer.is_global_zero and self.trainer.callback_metrics:
            shown = ", ".join(
                f"{name} {value:.4g}" for name, value in sorted(self.trainer.callback_metrics.items()) if name != "lr"
            )
            print(f"epoch {self.trainer.current_epoch}: {shown}")
            if not self.trainer.fast_dev_run:
                print(f"learning curves: {self.folder / 'learning_curves.png'}")


def _listed(value: Any) -> list[Any]:
    """What an option takes as a list, or as one thing, or not at all."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_data(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, ImageData) and value is not ImageData


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        k: v for key, value in config.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def quieten() -> None:
    """Lightning's notes on hardware, seeds and other products, and what its warnings say of choices made on purpose."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    warnings.filterwarnings("ignore", message=r"`ModelCheckpoint\(monitor=.*could not find the monitored key")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # of 1x1 convolutions
    warnings.filterwarnings("ignore", message="Encountered `nan` values")  # `FiniteLoss` says it
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings(
        "ignore", message=".*(Checkpoint directory|Experiment logs directory).*exists and is not empty"
    )


def _run(arguments: list[str]) -> None:
    """
    Raises:
        Refused: the options, the files or the memory are not what a run needs.
    """
    quieten()
    try:
        Command(arguments)
    except Refused as refusal:
        raise Refused(of_worker(str(refusal))) from refusal
    except MisconfigurationException as error:
        raise Refused(f"trainer: {one_line(str(error))}") from error
    except ValueError as error:
        if "lightning" not in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts:
            raise
        raise Refused(f"trainer: {one_line(str(error))}") from error
    except OSError as error:
        what = f"{error.filename or 'a file'}: got {error.strerror or one_line(str(error))!r}"
        raise Refused(f"{what}, expected to read or write it; what was saved before is as it was") from error
    except torch.OutOfMemoryError as error:
        least = "a smaller --data.batch_size or --model.efficient true"
        raise Refused(
            f"memory: got {one_line(str(error))!r}; expected less: {least} ({PROGRAM} plan counts)"
        ) from error


def fit(arguments: list[str]) -> int:
    try:
        _run(["fit", *arguments])
    except Stopped as stopped:
        print(f"{PROGRAM} fit: {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    return 0


def validate(arguments: list[str]) -> int:
    _run(["validate", *_configured(arguments), *arguments])
    return 0


def trained(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint that `fit` has written.

    Raises:
        Refused: it is none, as `checkpoints.read` says.
    """
    checkpoint = read(path)
    if ENTRY not in checkpoint:
        raise Refused(f"ckpt_path: got {path}, expected a checkpoint of `{PROGRAM} fit`")
    return checkpoint


def _configured(arguments: list[str]) -> list[str]:
    """The net and the data that the checkpoint in `arguments` was trained with; what else `arguments` have comes
    behind it and wins."""
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--ckpt_path":
            path = Path(value if equals else "".join(arguments[i + 1 : i + 2]))
            config = trained(path)[ENTRY]["config"]
            return ["--config", json.dumps({key: config[key] for key in ("model", "data") if key in config})]
    return []
