"""DenseNet beside nets that reuse features in other ways, in docs/feature_reuse.md: what was measured in one run."""

from collections.abc import Iterable
from typing import Any

import torch

from densenet_fast.nets import size

from .figures import megabytes, number
from .results import Record
from .rounds import spread
from .subjects import net
from .summary import is_default, is_same_setting
from .table import Table
from .variants import BASELINE, BY_NAME

Contents = dict[str, Any]
VARIANTS = (BASELINE, "native", "native-efficient", "triton", "triton-efficient", "resnet50", "vovnet39")
HEADER = (
    "",
    "parameters, M",
    "multiply-adds, G",
    "training, images/s",
    "kept, MB/image",
    "peak, MB/image",
    "inference, images/s",
)


def architectures(groups: Iterable[Contents]) -> tuple[Table, Contents] | None:
    """The table, and the group of training steps that it is of; None where no run has measured another net."""
    groups = list(groups)
    for training in groups:
        if training["group"] == "training" and not is_default(training) and "vovnet39" in _measured(training):
            same = (c for c in groups if c["group"] == "inference" and is_same_setting(c, training))
            inference = next((_measured(c) for c in same if not is_default(c)), {})
            steps = _measured(training)
            rows = [_row(v, steps[v], inference.get(v), training["settings"]) for v in VARIANTS if v in steps]
            return Table(HEADER, rows), training
    return None


def _measured(contents: Contents) -> dict[str, Record]:
    return {r["variant"]: r for r in contents["records"] if r["seconds"] and r["phase"] != "forward"}


def _row(variant: str, step: Record, inference: Record | None, settings: dict[str, Any]) -> list[str]:
    subject = net(settings["model"], settings["image"])
    with torch.device("meta"):
        model = subject.stock(False) if step["family"] == "ours" else BY_NAME[variant].build(subject)
        counted = size(model, subject.shape)
    return [
        f"{settings['model']}, {step['label']}" if step["family"] in ("stock", "ours") else step["label"],
        f"{counted.parameters / 1e6:.1f}",
        f"{counted.multiply_adds / 1e9:.1f}",
        _speed(step),
        megabytes(step, "live"),
        megabytes(step, "peak"),
        "as above" if inference is None else _speed(inference),
    ]


def _speed(record: Record) -> str:
    return number(record["batch"] / spread(record["seconds"]).median)
