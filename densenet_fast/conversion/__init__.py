"""Converting a live model of another library: its dense blocks, transitions and stem run fused from now on.

    print(densenet_fast.convert(model))

libraries.py says how each library writes a DenseNet's parts, trial.py tells whether a class that none of them has is a
dense block, parts.py what becomes of them.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from .. import backends
from ..modules import Fusable, Trunk
from ..modules.block import FusableBlock
from ..modules.transition import FusableTransition
from ..modules.trunk import find_stem
from .libraries import Library, is_transition, known_library
from .parts import Converted, change_back, change_block, change_transition, change_trunk, is_converted
from .trial import is_candidate, tried_library

__all__ = ["Part", "Report", "convert", "revert"]


@dataclass(frozen=True)
class Part:
    """What became of a part of the model.

    Attributes:
        name: in `model.named_modules()`.
        kind: "dense block", "transition", "trunk", the nn.Sequential that they are children of and that runs the stem,
            or "stem", where none does.
        package: whose class it is; "torch" for a trunk.
        why_left: why it was left as it was, as a clause; None if it is converted.
    """

    name: str
    kind: str
    package: str
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
        rows = [(p.name, p.kind, p.package, "converted" if p.why_left is None else f"left: {p.why_left}") for p in self]
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

    Known are the DenseNets of torchvision, timm, MONAI and torchxrayvision, and what is built of their parts,
    such as segmentation_models_pytorch's encoders; a project's own copy of such blocks is tried on random numbers.
    Modules, parameters, buffers, hooks, names and the library's own methods stay: an optimizer goes on, a checkpoint
    loads. Parts that are converted already stay as they are, and so do densenet_fast's own; `revert` undoes it.

    Args:
        model: contains dense blocks, at any depth.
        efficient: recompute the bottleneck outputs in backward instead of keeping them, and the output of a
            convolution in front of a norm, ReLU and max pooling. Blocks whose layers say so in their library's words
            (`memory_efficient`, `grad_checkpointing`) do it in any case.
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
    before = {id(module) for module in model.modules() if is_converted(module)}
    modules = list(model.named_modules())
    parts = [_convert_part(name, module, efficient, backend) for name, module in modules]
    parts = [
        _convert_trunk(name, module, backend) or _left_stem(name, module) or part
        for (name, module), part in zip(modules, parts, strict=True)
    ]
    report = Report(part for part in parts if part is not None)
    if on_unsupported == "raise" and (report.left or not any(part.kind == "dense block" for part in report)):
        for module in model.modules():
            if id(module) not in before:
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


def _convert_part(name: str, module: nn.Module, efficient: bool, backend: str) -> Part | None:
    """Convert a dense block or a transition, if `module` is one."""
    library: Library | str | None
    if isinstance(module, FusableBlock | FusableTransition):
        return Part(name, "dense block" if isinstance(module, FusableBlock) else "transition", _package(module))
    if is_transition(module):
        return Part(name, "transition", _package(module), change_transition(module, backend))
    library = known_library(module) or (tried_library(module) if is_candidate(module) else None)
    if library is None:
        return None
    why_left = library if isinstance(library, str) else change_block(module, library, efficient, backend)
    return Part(name, "dense block", _package(module), why_left)


def _convert_trunk(name: str, module: nn.Module, backend: str) -> Part | None:
    """Convert an nn.Sequential of converted parts, if `module` is one."""
    why_left = None
    if type(module) is nn.Sequential and any(isinstance(child, Fusable) for child in module.children()):
        why_left = change_trunk(module, backend)
    return Part(name, "trunk", _package(module), why_left) if why_left or isinstance(module, Trunk) else None


def _left_stem(name: str, module: nn.Module) -> Part | None:
    """The stem among the children of `module`, if converted parts are among them, too, and no trunk runs them."""
    if type(module) is nn.Sequential or isinstance(module, Trunk):
        return None
    children = dict(module.named_children())
    if not any(isinstance(child, Fusable) for child in children.values()):
        return None
    if (first := find_stem(list(children.values()))) is None:
        return None
    own = list(children)[first]
    why_left = f"it is called by {type(module).__name__}, not by an nn.Sequential"
    return Part(f"{name}.{own}" if name else own, "stem", _package(children[own]), why_left)


def _package(module: nn.Module) -> str:
    """The package that a module's class comes from, before its conversion."""
    stock = module.stock if isinstance(module, Converted) else nn.Sequential if is_converted(module) else type(module)
    return stock.__module__.partition(".")[0]
