"""The trunk of a DenseNet: an nn.Sequential that runs neighbours fused when nobody watches the tensor between them."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends
from ..stage.buffer import convolved_format, memory_format
from .block import DenseBlock
from .eligibility import is_hooked, is_traced, runs_as, why_not, why_not_norm, why_not_now, why_not_pool
from .fusable import Fusable
from .reading import BlockReading, Readable, Reading
from .running_stats import Transaction, transaction
from .staging import Consumer, run_stage
from .transition import Transition
from .validation import check_input


class Trunk(Readable["_TrunkReading"], nn.Sequential):
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
        return self.backend == "plain" or is_traced(x) or x.shape[:1] == (0,) or why_not_now() is not None

    def _run(self, x: Tensor, pooled: bool) -> Tensor:
        if torch.compiler.is_compiling():
            reading = _TrunkReading((self._steps(0, pooled),) * 2, set())  # what is traced twice takes twice as long
        else:
            reading = self.reading()
        check_input(self, x, reading.passed)
        with transaction(self) as updates:
            y, is_pooled = self._run_steps(x, reading.steps[int(pooled)], updates, pooled)
        return relu_pool(y, self, *list(self.children())[-1:]) if pooled and not is_pooled else y

    def _run_steps(self, x: Tensor, steps: "list[_Step]", updates: Transaction, pooled: bool) -> tuple[Tensor, bool]:
        """The last output, and whether the head has already pooled it."""
        layout = memory_format(x)  # in which others see what stages return, as PyTorch's layers would return it
        stats: Tensor | None = None  # of x, where its producer has them
        extend = False  # whether x is the head of the buffer of the stage to come
        waiting = deque(steps)
        while waiting:
            step = waiting.popleft()
            next_block = waiting[0].block if waiting else None
            if step.called is not None:
                module, stats, extend = step.called, None, False
                updates.guard(module)
                if waiting and waiting[0].called is None and _is_seen_by_a_stage_alone(module, x):
                    layout = convolved_format(layout, module.weight)
                    x = module(x.contiguous(memory_format=torch.channels_last))
                    continue
                x = module(x)
                layout = memory_format(x)
                if why_not(module, nn.Conv2d) is not None:  # it may have changed those behind it
                    waiting = deque(self._steps(step.behind, pooled))
                continue
            following = next_block if step.consumer is not None else None
            x, stats, layout = run_stage(
                x,
                updates,
                step.block,
                step.consumer,
                backend=self.backend if step.block is None else step.block.module.backend,
                layout=layout,
                x_stats=stats,
                extend=extend,
                following=following,
            )
            extend = following is not None
            if step.consumer is not None and step.consumer.kind == "head":
                return x, True
        return x, False

    def read(self) -> "_TrunkReading":
        return _TrunkReading((self._steps(0, False), self._steps(0, True)), set())

    def _steps(self, begin: int, pooled: bool) -> "list[_Step]":
        """What to run in turn from child number `begin` on; warns where a block's layers forbid a stage."""
        children = list(self.children())
        found: list[_Step] = []
        while begin < len(children):
            found.append(_step(children, begin, pooled))
            begin = found[-1].behind
        return found


class _Step(NamedTuple):
    """A part of a trunk: a module to be called, or a stage."""

    behind: int  # number of the first child behind it
    called: nn.Module | None = None
    block: BlockReading | None = None
    consumer: Consumer | None = None


class _TrunkReading(NamedTuple):
    steps: tuple[list[_Step], list[_Step]]  # for the trunk's own output, and for what is pooled of it
    passed: set[tuple[int, int, int]]  # shapes N, H, W of images that are known to be large enough


def _step(children: list[nn.Module], i: int, pooled: bool) -> _Step:
    """The step that begins with child i."""
    block = _fused(children[i], DenseBlock)
    if isinstance(block, BlockReading):
        if i + 1 < len(children):
            following = children[i + 1]
            if _fused(following, Transition) is not None:
                assert isinstance(following, Transition)
                return _Step(i + 2, block=block, consumer=following.consumer())
            if pooled and i + 2 == len(children) and why_not_norm(following) is None:
                return _Step(i + 2, block=block, consumer=Consumer.of("head", following))
        return _Step(i + 1, block=block)
    if _is_stem(children[i : i + 3]):
        return _Step(i + 3, consumer=Consumer.of("stem", children[i]))
    return _Step(i + 1, called=children[i])


def relu_pool(x: Tensor, *producers: nn.Module) -> Tensor:
    """ReLU and global average: [N, C, H, W] -> [N, C].

    In place as in torchvision, so that who keeps what the `producers` of x return finds it rectified; not where a full
    backward hook returned it, which autograd does not let anybody change.
    """
    inplace = not any(module._backward_hooks or module._backward_pre_hooks for module in producers)
    return torch.flatten(F.adaptive_avg_pool2d(F.relu(x, inplace), (1, 1)), 1)


def _fused(module: nn.Module, cls: type[Fusable]) -> Reading | None:
    """The reading of `module` if it is a `cls` that runs fused and whose call nobody watches; warns where its layers
    forbid it."""
    if isinstance(module, cls) and why_not(module, cls) is None:
        return module.fusable()
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


def _is_stem(modules: Sequence[nn.Module]) -> bool:
    """Whether these are a stock BN, ReLU and 3x3 max pooling."""
    pool = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False, "return_indices": False}
    return (
        len(modules) == 3
        and why_not_norm(modules[0]) is None
        and why_not(modules[1], nn.ReLU) is None
        and why_not_pool(modules[2], nn.MaxPool2d, **pool) is None
    )
