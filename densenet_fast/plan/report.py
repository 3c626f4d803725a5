"""What `densenet-fast plan` tells: of a net's training step in each way of running it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import backends
from ..memory import Step
from ..nets import create, size
from . import MARGIN, cheapest, most, needed, resident, shape_of, stock
from .floor import floor
from .units import text_of_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Asked(NamedTuple):
    """The question. memory: bytes; bandwidth: bytes a second; states: tensors that the optimizer keeps of each
    parameter's size."""

    net: str
    image: int
    batch: int
    dtype: str
    gpu: str | None = None
    memory: int | None = None
    bandwidth: int | None = None
    states: int = 1

    @property
    def backend(self) -> str:
        """Whose operations' memory counts."""
        return "triton" if self.gpu else backends.choose("auto", torch.device("cpu"), DTYPES[self.dtype])


class Plan:
    """The answer's parts for any batch."""

    def __init__(self, asked: Asked):
        self.asked = asked
        with torch.device("meta"):
            self.model = create(asked.net)

    def step(self, batch: int) -> Step:
        return Step.of(self.model, shape_of(self.model, self.asked.image, batch), DTYPES[self.asked.dtype])

    def needed(self, way: str, batch: int) -> int:
        """Bytes of everything: parameters and images, what the optimizer keeps, and the step's peak, at most."""
        step = self.step(batch)
        return resident(self.model, step, self.asked.states) + round(MARGIN * WAYS[way].peak(step, self.asked.backend))

    def largest(self, way: str) -> int:
        """The largest batch that fits."""
        return most(lambda batch: self.needed(way, batch) <= (self.asked.memory or 0))


class Way(NamedTuple):
    """A way to run a step: its bytes after the forward, and at the peak."""

    kept: Callable[[Step], int]
    peak: Callable[[Step, str], int]


def _all(step: Step, efficient: bool) -> Sequence[bool]:
    return [efficient or not stage.can_recompute for stage in step.stages]


WAYS = {
    "torchvision": Way(lambda step: stock.kept(step, False), lambda step, _: stock.peak(step, False)),
    "torchvision, checkpointing": Way(lambda step: stock.kept(step, True), lambda step, _: stock.peak(step, True)),
    "densenet_fast": Way(
        lambda step: step.kept(_all(step, False)), lambda step, backend: step.peak(backend, _all(step, False))
    ),
    "densenet_fast, efficient": Way(
        lambda step: step.kept(_all(step, True)), lambda step, backend: step.peak(backend, _all(step, True))
    ),
}


def report(asked: Asked) -> dict[str, Any]:
    """Everything in bytes, multiply-adds and seconds.

    Raises:
        ValueError: the images do not fit the net.
    """
    plan, dtype = Plan(asked), DTYPES[asked.dtype]
    step = plan.step(asked.batch)
    shape = shape_of(plan.model, asked.image, asked.batch)
    counted = size(plan.model.set_backend("plain"), shape[1:])
    ways = {}
    for name, way in WAYS.items():
        of = {"kept": way.kept(step), "peak": way.peak(step, asked.backend), "needed": plan.needed(name, asked.batch)}
        ways[name] = {**of, "largest_batch": plan.largest(name)} if asked.memory else of
    found = {
        **asked._asdict(),
        "backend": asked.backend,
        "parameters": counted.parameters,
        "multiply_adds": counted.multiply_adds,
        "ways": ways,
    }
    if asked.memory:
        always = resident(plan.model, step, asked.states)
        chosen = cheapest(step, asked.backend, asked.memory, always)
        found["fit"] = None if chosen is None else _fitted(step, asked.backend, always, chosen)
    if asked.bandwidth:
        moved = floor(plan.model, shape, dtype)
        seconds = moved / asked.bandwidth
        found["floor"] = {"bytes": moved, "seconds": seconds, "images_per_second": asked.batch / seconds}
    return found


def _fitted(step: Step, backend: str, always: int, chosen: list[bool]) -> dict[str, Any]:
    pairs = [pair for pair in zip(step.stages, chosen, strict=True) if pair[0].can_recompute]
    return {
        "efficient": [stage.name for stage, efficient in pairs if efficient],
        "needed": needed(step, backend, always, chosen),
        "recomputed": sum(stage.recomputed for stage, efficient in pairs if efficient),
    }


def text(found: dict[str, Any]) -> str:
    """The report as people read it."""
    of = f"batch {found['batch']} of {found['image']}x{found['image']}, {found['dtype']}"
    where = f" on {found['gpu']}" if found["gpu"] else ""
    lines = [
        f"{found['net']}, {of}{where}, backend {found['backend']}",
        f"{found['parameters'] / 1e6:.2f} M parameters, {found['multiply_adds'] / 1e9:.2f} G multiply-adds an image",
        "",
        f"{'a training step':<28}{'kept':>10}{'peak':>10}{'in all':>10}",
    ]
    if found["memory"]:
        lines[-1] += f"   largest batch in {text_of_bytes(found['memory'])}"
    for name, way in found["ways"].items():
        columns = [text_of_bytes(way[column]) for column in ("kept", "peak", "needed")]
        lines.append(f"{name:<28}" + "".join(f"{column:>10}" for column in columns))
        if "largest_batch" in way:
            lines[-1] += f"   {way['largest_batch']}"
    lines += ["", f"in all: with parameters, images and the optimizer's {found['states']} x parameters"]
    if "fit" in found:
        lines.append(_text_of_fit(found))
    if "floor" in found:
        moved, seconds, rate = found["floor"].values()
        lines.append(
            f"moves at least {text_of_bytes(moved)}: {seconds * 1e3:.3g} ms, at most {rate:.0f} images/s at "
            f"{text_of_bytes(found['bandwidth'])}/s"
        )
    return "\n".join(lines)


def _text_of_fit(found: dict[str, Any]) -> str:
    fit, budget = found["fit"], text_of_bytes(found["memory"])
    if fit is None:
        largest = found["ways"]["densenet_fast, efficient"]["largest_batch"]
        if largest == 0:
            return f"{budget}: not even one image fits, with every block efficient; smaller images or another net would"
        return f"{budget}: a batch of {found['batch']} does not fit; at most {largest} do, with every block efficient"
    blocks = ", ".join(fit["efficient"]) or "no block"
    again = fit["recomputed"] / (3 * found["multiply_adds"] * found["batch"])
    return (
        f"{budget}: {text_of_bytes(fit['needed'])} with {blocks} efficient, {again:.1%} of a step's multiply-adds again"
    )
