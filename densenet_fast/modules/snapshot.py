"""Whether a module is still what it was when it was last read.

Anybody may set an attribute, hook a child or replace it between two steps, so a step looks at everything that decides
what calling the modules does, tensors excepted.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from torch import nn

# What `eligibility` or a reading looks at, by exact class; of other classes, everything.
_OF_NORMS = ("training", "eps", "momentum", "track_running_stats")
_OF_CONVOLUTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_OF_OTHERS = ("ceil_mode", "return_indices", "divisor_override", "p", "drop_rate", "backend")
_ALL = (*_OF_NORMS, *_OF_CONVOLUTIONS, *_OF_OTHERS)


def _everything(of: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(map(of.get, _ALL))


_Look = Callable[[dict[str, Any]], Any]
_LOOKS: dict[type[nn.Module], _Look] = {
    nn.BatchNorm2d: itemgetter(*_OF_NORMS),
    nn.Conv2d: itemgetter(*_OF_CONVOLUTIONS),
    nn.ReLU: itemgetter("training"),
}


class Snapshot:
    """Of a module and all below it."""

    def __init__(self, module: nn.Module):
        self._modules: list[nn.Module] = []
        self._parents: list[nn.Module] = []
        self._collect(module)
        self._owners = [m for m in self._modules if m._parameters or m._buffers]
        self._looks = [_LOOKS.get(m.__class__, _everything) for m in self._modules]
        self._taken = self._take()

    def _collect(self, module: nn.Module) -> None:
        self._modules.append(module)
        if module._modules:
            self._parents.append(module)
            for child in module._modules.values():
                if child is not None:
                    self._collect(child)

    def holds(self, module: nn.Module) -> bool:
        """Whether it is of `module`, not of one that this is a replica of, and nothing has changed."""
        return module is self._modules[0] and self._take() == self._taken

    def _take(self) -> list[list[Any]]:
        attributes = [m.__dict__ for m in self._modules]
        return [
            [tuple(m._modules.items()) for m in self._parents],
            [m.__class__ for m in self._modules],
            [len(of) for of in attributes],  # a forward set on an instance, for one
            [
                not (of["_forward_hooks"] or of["_forward_pre_hooks"])
                and not (of["_backward_hooks"] or of["_backward_pre_hooks"])
                for of in attributes
            ],
            [look(of) for look, of in zip(self._looks, attributes, strict=True)],
            [
                (
                    p.get("weight") is None,
                    p.get("bias") is None,
                    b.get("running_mean") is None,
                    b.get("num_batches_tracked") is None,
                )
                for p, b in [(m._parameters, m._buffers) for m in self._owners]
            ],
        ]
