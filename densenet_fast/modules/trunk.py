"""The trunk of a DenseNet: an nn.Sequential that runs neighbours fused when nobody watches the tensor between them."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends
from ..stage.buffer import convolved_format, memory_format
from ..uncompiled import uncompiled
from .block import DenseBlock
from .eligibility import is_hooked, is_traced, runs_as, why_not, why_not_norm, why_not_now, why_not_pool
from .fusable import Fusable
from .running_stats import Transaction, transaction
from .staging import Consumer, run_stage
from .transition import Transition
from .validation import check_input

_Module = TypeVar("_Module", bound=Fusable)


class Trunk(nn.Sequential):
    """torchvision's `features`: conv0 [norm0 relu0 pool0] denseblock1 transition1 ... denseblockB norm.

    A block and the transition behind it run as one stage, and so do norm0, relu0 and pool0, and in `pooled` the last
    block with the final norm. Modules with hooks and replaced modules are called one by one. A slice (`features[:7]`)
    is a trunk too.
    """

    backend = "auto"

    def __getitem__(self, index: slice | int) -> "Trunk | nn.Module":
        part = super().__getitem__(index)
        if isinstance(part, Trunk):
            part.backend = self.backend
        return part

    def set_backend(self, backend: str) -> None:
        """Set the backend of the stem and of every block and transition."""
        self.backend = backends.check_name(backend)
        for module in self.modules():
            if isinstance(module, Fusable):
                module.set_backend(backend)

    def forward(self, x: Tensor) -> Tensor:
        """The last module's output, in the memory format that PyTorch's layers give it for x [N, channels, H, W]."""
        if self._is_plain(x):
            return super().forward(x)
        return self._run(x, pooled=False)

    def pooled(self, x: Tensor) -> Tensor:
        """ReLU and global average of `forward`, [N, C]."""
        if self._is_plain(x) or is_hooked(self) or not runs_as(self, Trunk):
            return relu_pool(self(x), self, *list(self.children())[-1:])
        return self._run(x, pooled=True)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether to leave everything to the children, who know how to run plain."""
        return self.backend == "plain" or is_traced(x) or why_not_now() is not None

    @uncompiled
    def _run(self, x: Tensor, pooled: bool) -> Tensor:
        check_input(self, x)
        with transaction(self) as updates:
            y, is_pooled = self._run_children(x, updates, pooled)
        return relu_pool(y, self, *list(self.children())[-1:]) if pooled and not is_pooled else y

    def _run_children(self, x: Tensor, updates: Transaction, pooled: bool) -> tuple[Tensor, bool]:
        """The last output, and whether the head has already pooled it."""
        layout = memory_format(x)  # in which others see what stages return, as PyTorch's layers would return it
        stats: Tensor | None = None  # of x, where its producer has them
        extend = False  # whether x is the head of the buffer of the stage to come
        steps = self._steps(x, pooled)
        for step, next_step in zip(steps, [*steps[1:], None], strict=True):
            if isinstance(step, nn.Module):
                updates.guard(step)
                if isinstance(next_step, _Fused) and _is_seen_by_a_stage_alone(step, x):
                    layout = convolved_format(layout, step.weight)
                    x = step(x.contiguous(memory_format=torch.channels_last))
                else:
                    x = step(x)
                    layout = memory_format(x)
                stats, extend = None, False
                continue
            block, consumer = step
            following = next_step.block if isinstance(next_step, _Fused) and consumer is not None else None
            if consumer is not None and consumer.kind == "transition":
                layout = convolved_format(layout, consumer.conv.weight)
            x, stats, _ = run_stage(
                x,
                updates,
                block,
                consumer,
                backend=self.backend if block is None else block.backend,
                x_stats=stats,
                extend=extend,
                following=following,
                layout=layout,
            )
            extend = following is not None
        last = steps[-1] if steps else None
        return x, isinstance(last, _Fused) and last.consumer is not None and last.consumer.kind == "head"

    def _steps(self, x: Tensor, pooled: bool) -> "list[nn.Module | _Fused]":
        """What to run in turn: stages, and modules to be called; warns where a block's layers forbid a stage."""
        waiting = deque(self.children())
        found: list[nn.Module | _Fused] = []
        while waiting:
            if (block := _fused(waiting[0], DenseBlock, x)) is not None:
                waiting.popleft()
                found.append(_Fused(block, self._consumer(waiting, x, pooled)))
            elif (norm := _stem_norm(waiting, x)) is not None:
                del waiting[0], waiting[0], waiting[0]
                found.append(_Fused(None, Consumer("stem", norm)))
            else:
                found.append(waiting.popleft())
        return found

    @staticmethod
    def _consumer(waiting: deque[nn.Module], x: Tensor, pooled: bool) -> Consumer | None:
        """The consumer of a block's buffer, taken from `waiting` if the two can run as one stage."""
        if not waiting:
            return None
        transition = _fused(waiting[0], Transition, x)
        if transition is not None:
            waiting.popleft()
            return transition.consumer()
        if pooled and len(waiting) == 1 and why_not_norm(waiting[0]) is None:
            return Consumer("head", waiting.popleft())
        return None


class _Fused(NamedTuple):
    """A stage of a trunk."""

    block: DenseBlock | None
    consumer: Consumer | None


def relu_pool(x: Tensor, *producers: nn.Module) -> Tensor:
    """ReLU and global average: [N, C, H, W] -> [N, C].

    In place as in torchvision, so that who keeps what the `producers` of x return finds it rectified; not where a full
    backward hook returned it, which autograd does not let anybody change.
    """
    inplace = not any(module._backward_hooks or module._backward_pre_hooks for module in producers)
    return torch.flatten(F.adaptive_avg_pool2d(F.relu(x, inplace), (1, 1)), 1)


def _fused(module: nn.Module, cls: type[_Module], x: Tensor) -> _Module | None:
    """`module` if it is a `cls` that runs fused and whose call nobody watches; warns where its layers forbid it."""
    if isinstance(module, cls) and why_not(module, cls) is None and not module.runs_plain(x):
        return module
    return None


def _is_seen_by_a_stage_alone(module: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    """Whether `module`, with a stage behind it, which reads channels_last, is a convolution of which nobody else sees
    input and output. Gradients of x would show, and so would a parametrization that is evaluated once more."""
    return (
        isinstance(module, nn.Conv2d)
        and why_not(module, nn.Conv2d) is None
        and "weight" in module._parameters
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def _stem_norm(waiting: Sequence[nn.Module], x: Tensor) -> Any:
    """The first of `waiting` if it and the two modules behind it are a stock BN, ReLU and 3x3 max pooling."""
    pool = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False, "return_indices": False}
    if (
        len(waiting) >= 3
        and why_not_norm(waiting[0]) is None
        and why_not(waiting[1], nn.ReLU) is None
        and why_not_pool(waiting[2], nn.MaxPool2d, **pool) is None
        and x.shape[0] > 0
    ):
        return waiting[0]
    return None
