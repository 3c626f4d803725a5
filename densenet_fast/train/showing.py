"""What a run shows: the progress bar, and the learning curves as a picture."""

import csv
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLUMNS = ("epoch", "train_loss", "val_loss", "train_error", "val_error", "val_top5_error", "lr")


class Bar(TQDMProgressBar):
    """Lightning's, with loss and error of the epoch so far, images/s of all processes, and the peak of memory."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._begin: float | None = None
        self._images = 0

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        super().on_train_epoch_start(trainer, *arguments)
        self._begin = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._begin is None:  # counted from behind the first step, which warms up
            self._begin, self._images = time.perf_counter(), 0
        else:
            self._images += len(batch[1]) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        means = getattr(pl_module, "means", {})
        for label, name in (("loss", "train_loss"), ("error", "train_error")):
            if name in means and means[name].update_called:
                unit = "%" if label == "error" else ""
                shown[label] = f"{means[name].mean_value.item() / max(means[name].weight.item(), 1):.3g}{unit}"
        if self._begin is not None and self._images:
            shown["images/s"] = f"{self._images / (time.perf_counter() - self._begin):.3g}"
        shown["peak"] = f"{_peak_bytes() / 1e9:.2f} GB"
        for name in ("val_error", "val_top5_error"):
            if name in trainer.callback_metrics:
                shown[name] = f"{trainer.callback_metrics[name].item():.2f}%"
        return shown


def _peak_bytes() -> int:
    """Of the GPU's memory that tensors took, or of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class LearningCurves(Callback):
    """Keeps the epochs' means, also over resumed runs, and draws them at the end: learning_curves.png and .csv."""

    def __init__(self, folder: Path, title: str):
        self.folder, self.title = folder, title
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        known = {name: value.item() for name, value in trainer.callback_metrics.items() if name in COLUMNS}
        self.rows.append({"epoch": trainer.current_epoch + 1, **known})

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "learning_curves.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, [c for c in COLUMNS if any(c in row for row in self.rows)])
                writer.writeheader()
                writer.writerows(self.rows)
            draw(self.rows, self.title, self.folder / "learning_curves.png")


def draw(rows: list[dict[str, float]], title: str, path: Path) -> None:
    """Loss and error of training and validation against the epoch, as a PNG."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, value, unit in zip(figure.subplots(1, 2), ("loss", "error"), ("cross entropy", "%"), strict=True):
        for part, label, colour in (("train", "training", "tab:blue"), ("val", "validation", "tab:orange")):
            points = [(row["epoch"], row[f"{part}_{value}"]) for row in rows if f"{part}_{value}" in row]
            if points:
                text = f"{label}, at last {points[-1][1]:.3g}"
                marker = "o" if len(points) < 20 else None
                axes.plot(*zip(*points, strict=True), label=text, color=colour, marker=marker, markersize=3)
        axes.set(title=value, xlabel="epoch", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    unfinished = path.with_name(f".{path.name}.part")
    figure.savefig(unfinished, dpi=120, format="png")
    unfinished.replace(path)
