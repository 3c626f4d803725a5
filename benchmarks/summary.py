"""The README's table: stock and the fastest of ours in a few lines, out of all that was measured on one machine."""

from collections.abc import Iterable
from typing import Any

from . import machine
from .figures import megabytes, number
from .results import Record
from .rounds import ratio, spread
from .table import Table
from .variants import BASELINE, BY_NAME

Contents = dict[str, Any]
ON_A_GPU = ("torchvision-graph", "compile")  # what a user there would try first


def summary(training: Contents, groups: Iterable[Contents]) -> Table:
    """Stock and the fastest of ours, each also with its checkpointing or recomputation, and on a GPU in a CUDA graph or
    compiled: training, memory, inference."""
    steps = _measured(training)
    same = (c for c in groups if c["group"] == "inference" and is_same_setting(c, training))
    inference = next((_measured(c) for c in same if not is_default(c)), {})
    ours = [v for v, r in steps.items() if r["family"] == "ours"]
    fastest = [
        min(names, key=lambda v: spread(steps[v]["seconds"]).median)
        for efficient, graph in ((False, False), (True, False), (False, True))
        if (names := [v for v in ours if ("-efficient" in v, BY_NAME[v].graph) == (efficient, graph)])
    ]
    stock = (BASELINE, "torchvision-efficient", *(ON_A_GPU if training["machine"]["device"] == "cuda" else ()))
    rows = []
    for variant in (*stock, *fastest):
        if variant in steps:
            infers = "inference" in BY_NAME[variant].phases
            inferred = _speed(variant, inference) if infers else "as above"
            record = steps[variant]
            rows.append([record["label"], _speed(variant, steps), megabytes(record, "live"), inferred])
    return Table(("", "training, images/s", "kept, MB/image", "inference, images/s"), rows)


def _measured(contents: Contents) -> dict[str, Record]:
    """The records of whole steps, or of inference, by variant."""
    return {r["variant"]: r for r in contents["records"] if r["seconds"] and r["phase"] != "forward"}


def _speed(variant: str, records: dict[str, Record]) -> str:
    """Images per second and, beside another variant than the baseline, how many times the baseline's they are."""
    record, stock = records.get(variant), records.get(BASELINE)
    if record is None:
        return "-"
    speed = number(record["batch"] / spread(record["seconds"]).median)
    if stock is None or variant == BASELINE:
        return speed
    return f"{speed} ({ratio(stock['seconds'], record['seconds']).median:.2f}x)"


def is_default(contents: Contents) -> bool:
    """Whether it was measured under glibc's own allocator."""
    return contents["settings"]["allocator"] == "default"


def is_same_setting(one: Contents, other: Contents) -> bool:
    """Whether two groups are about one machine, net, image, batch and dtype."""
    keys = ("model", "image", "batch", "dtype")
    settings = all(one["settings"][key] == other["settings"][key] for key in keys)
    return settings and machine.slug(one["machine"]) == machine.slug(other["machine"])
