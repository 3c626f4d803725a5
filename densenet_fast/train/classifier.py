"""The net, its loss and its optimizer, as Lightning's Trainer runs them."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric

from ..cli import Refused
from ..nets import create
from .parallel import shard
from .schedule import factor
from .told import expect

Batch = tuple[Tensor, Tensor]  # images [N, C, H, W], or with crops [N, crops, C, H, W]; labels [N]


class Classifier(LightningModule):
    """A DenseNet trained as in the paper: SGD with Nesterov momentum and a learning rate that is divided twice.

    Args:
        name: of the net, see `densenet-fast nets`.
        num_classes: outputs; the command links it to the data.
        in_channels: channels of the images; the command links it to the data.
        drop_rate: dropout probability behind each layer; the paper has 0.2 without augmentation.
        efficient: recompute the bottleneck outputs in backward.
        backend: "auto", "native", "triton", "eager" or "plain".
        lr: learning rate behind the warm-up.
        momentum: Nesterov's.
        weight_decay: of all parameters.
        schedule: "step" multiplies lr by `gamma` at each milestone, "cosine" takes it down to 0.
        milestones: parts of the run behind which "step" has its steps.
        gamma: see `schedule`.
        warmup: epochs in which lr rises from 0.
        label_smoothing: part of a label that is spread over all classes.
        channels_last: memory layout of images and weights.
        compile: run the net through torch.compile.

    Logs train_loss and train_error, val_loss, val_error and, of more than five classes, val_top5_error: means over
    an epoch, errors in percent.
    """

    def __init__(
        self,
        name: str = "densenet_bc_100_12",
        num_classes: int = 10,
        in_channels: int = 3,
        drop_rate: float = 0.0,
        efficient: bool = False,
        backend: str = "auto",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: Literal["step", "cosine"] = "step",
        milestones: Sequence[float] = (0.5, 0.75),
        gamma: float = 0.1,
        warmup: float = 0.0,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
        compile: bool = False,
    ):
        super().__init__()
        self.save_hyperparameters()
        self._check()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        try:
            self.net = create(
                name,
                num_classes=num_classes,
                in_channels=in_channels,
                drop_rate=drop_rate,
                efficient=efficient,
                backend=backend,
            )
        except ValueError as error:
            name, colon, why = str(error).partition(": ")
            option = {"net": "name", "unknown backend": "backend"}.get(name, name)
            raise Refused(f"model.{option}{colon}{why}") from None
        self.net.to(memory_format=self.layout)  # type: ignore[call-overload]
        if compile:
            self.net.compile()
        self.top = [1, 5] if num_classes > 5 else [1]
        self.means = torch.nn.ModuleDict(
            {f"{part}_{value}": MeanMetric() for part in ("train", "val") for value in ("loss", "error", "top5_error")}
        )

    def _check(self) -> None:
        """Refuse numbers of which nothing could be learnt; torch and the net check the rest when they get it."""
        own = self.hparams
        for name in ("lr", "weight_decay", "warmup"):
            expect(own[name] >= 0, f"model.{name}", own[name], "at least 0")
        expect(own["num_classes"] >= 1, "model.num_classes", own["num_classes"], "at least 1")
        for name in ("momentum", "label_smoothing"):
            expect(0 <= own[name] < 1, f"model.{name}", own[name], "at least 0 and less than 1")
        expect(0 < own["gamma"] <= 1, "model.gamma", own["gamma"], "more than 0 and at most 1")
        parts = "parts of the run between 0 and 1, as 0.5 for half of it"
        expect(all(0 <= part <= 1 for part in own["milestones"]), "model.milestones", own["milestones"], parts)

    def configure_model(self) -> None:
        """Shard the net where the strategy is FSDP2, once."""
        if self.device_mesh is not None and not isinstance(self.net, FSDPModule):
            shard(self.net, self.device_mesh)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> class scores [N, num_classes]; [N, crops, C, H, W] -> log of the crops' mean probability."""
        try:
            scores = self.net(images.flatten(0, -4).contiguous(memory_format=self.layout))
        except ValueError as error:
            raise Refused(f"data: {error}") from error
        if images.dim() == 4:
            return scores
        crops = images.shape[1]
        return scores.log_softmax(1).unflatten(0, (-1, crops)).logsumexp(1) - math.log(crops)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._measure("train", batch, self.hparams["label_smoothing"], top=(1,))
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("val", batch, label_smoothing=0.0, top=self.top)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities [N, num_classes]."""
        return self(batch[0]).softmax(1)

    def _measure(self, part: str, batch: Batch, label_smoothing: float, top: Sequence[int]) -> Tensor:
        images, labels = batch
        scores = self(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
        values = {"loss": (loss.detach(), len(labels))}
        for k in top:
            wrong = (scores.detach().topk(k).indices != labels[:, None]).all(1)
            values["error" if k == 1 else f"top{k}_error"] = 100 * wrong.float(), 1
        for value, (measured, weight) in values.items():
            name = f"{part}_{value}"
            mean: Any = self.means[name]
            mean.update(measured, weight)
            self.log(name, mean, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=self.hparams["lr"],
            momentum=self.hparams["momentum"],
            nesterov=self.hparams["momentum"] > 0,
            weight_decay=self.hparams["weight_decay"],
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, step: int) -> float:
        """Of the learning rate in an optimizer's step, counted from 0.

        Before step 0 Lightning does not know the epoch's length, and asking it would keep it from resuming within one.
        """
        options = {name: self.hparams[name] for name in ("schedule", "milestones", "gamma")}
        if step == 0:
            return factor(0, math.inf, self.hparams["warmup"], **options)
        trainer = self.trainer
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        total = trainer.max_steps if trainer.max_steps > 0 else (trainer.max_epochs or 0) * steps
        return factor(step, total, self.hparams["warmup"] * steps, **options)
