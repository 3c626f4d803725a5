"""Converting a live model of another library: its dense blocks, transitions and stem run fused from now on.

    print(densenet_fast.convert(model))

libraries.py says how each library writes a DenseNet's parts, parts.py what becomes of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from .. import backends
from ..modules import Fusable, Trunk
from ..modules.block import FusableBlock
from ..modules.transition import FusableTransition
from .libraries import library_of
from .parts import Converted, ConvertedTrunk, change, change_back, change_trunk

__all__ = ["Part", "Report", "convert", "revert"]


@dataclass(frozen=True)
class Part:
    """What became of a part of the model.

    Attributes:
        name: in `model.named_modules()`.
        kind: "dense block", "transition" or "trunk", the nn.Sequential that they are children of.
        library: whose class it is; "torch" for a trunk.
        why_left: why it was left as it was, as a clause; None if it is converted.
    """

    name: str
    kind: str
    library: str
    why_left: str | None = None


class Report(tuple[Part, ...]):
    """The parts that `convert` found, in the model's order; printed as a table."""

    @property
    def converted(self) -> tuple[Part, ...]:
        """The parts that run fused."""
        return tuple(part for part in self if part.why_left is None)

    @property
    def left(self) -> tuple[Part, ...]:
        """The parts that were left as they were."""
        return tuple(part for part in self if part.why_left is not None)

    def __str__(self) -> str:
        if not self:
            return "no dense blocks of a library that convert() knows"
        rows = [(p.name, p.kind, p.library, "converted" if p.why_left is None else f"left: {p.why_left}") for p in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, f"{len(self.converted)} of {len(self)} parts run fused"])


def convert(
    model: nn.Module,
    *,
    efficient: bool = False,
    backend: str = "auto",
    on_unsupported: Literal["leave", "raise"] = "leave",
) -> Report:
    """Run the dense blocks, transitions and stem of a live model fused, in place.

    Known are the DenseNets of torchvision, timm, MONAI (2-D) and torchxrayvision, and what is built of their parts,
    such as segmentation_models_pytorch's encoders. Modules, parameters, buffers, hooks, names and the library's own
    methods stay: an optimizer goes on, a checkpoint loads. Parts that are converted already stay as they are, and so do
    densenet_fast's own; `revert` undoes it.

    Args:
        model: contains dense blocks, at any depth.
        efficient: recompute the bottleneck outputs in backward instead of keeping them. Blocks whose layers say so in
            their library's words (`memory_efficient`, `grad_checkpointing`) do it in any case.
        backend: as in `densenet_fast.DenseNet`.
        on_unsupported: whether a part that cannot run fused is left as it is, which the report tells, or an error.

    Returns:
        What became of each part; `print(convert(model))` shows a table.

    Raises:
        ValueError: an unknown option; with "raise", a part cannot run fused or there are no dense blocks. Nothing has
            changed then.
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if on_unsupported not in ("leave", "raise"):
        raise ValueError(f"on_unsupported: got {on_unsupported!r}, expected 'leave' or 'raise'")
    backends.check_name(backend)
    new: list[nn.Module] = []
    report = Report(_convert_parts(model, new, efficient=efficient, backend=backend))
    if on_unsupported == "raise" and (report.left or not report):
        for module in new:
            change_back(module)
        raise ValueError(f"cannot convert all of {type(model).__name__}:\n{report}")
    return report


def revert(model: nn.Module) -> None:
    """Undo `convert`: every converted part of `model` is again what its library made it, with its present parameters.

    Args:
        model: a converted model, or a part of one; a model without converted parts stays as it is.
    """
    for module in model.modules():
        change_back(module)


def _convert_parts(model: nn.Module, new: list[nn.Module], *, efficient: bool, backend: str) -> Iterator[Part]:
    """Convert what can be, and then the trunks; `new` takes the modules that have changed."""
    parts: dict[str, Part] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        known = library_of(module)
        if isinstance(module, FusableBlock | FusableTransition):
            kind = "dense block" if isinstance(module, FusableBlock) else "transition"
            parts[name] = Part(name, kind, module.library.name if isinstance(module, Converted) else "densenet_fast")
        elif known is not None:
            library, kind, cls = known
            reason = change(module, library, kind, cls, efficient=efficient, backend=backend)
            parts[name] = Part(name, kind, library.name, reason)
            if reason is None:
                new.append(module)
    for name, module in modules.items():
        if not any(isinstance(child, Fusable) for child in module.children()):
            continue
        if type(module) is nn.Sequential:
            change_trunk(module, backend)
            new.append(module)
        if isinstance(module, Trunk):
            parts[name] = Part(name, "trunk", "torch" if isinstance(module, ConvertedTrunk) else "densenet_fast")
    return (parts[name] for name in modules if name in parts)
