"""The fewest bytes that a training step can move: those of `contract.traffic` for our operations, and the convolution's
and the classifier's arguments and results, each once."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..contract.traffic import traffic
from ..models import DenseNet

_MULTIPLIES = ("convolution", "convolution_backward", "addmm", "mm")


class _Traffic(TorchDispatchMode):
    """Adds up what the operations that it sees must move."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        if func.namespace == "densenet_fast":
            self.bytes += traffic(name, args).bytes if name != "update_running_stats" else 0
        elif name in _MULTIPLIES:
            moved = [t for t in tree_leaves((args, result)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in moved)
        return result


def floor(model: DenseNet, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a training step on images of `shape` [N, C, H, W], nothing computed. In half precision weights count as
    converted, the conversions themselves do not; nor do the optimizer and the loss."""
    with torch.device("meta"):
        net = copy.deepcopy(model).to("meta").to(dtype).set_backend("eager").train()
        for norm in net.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.float()  # autocast leaves them so
        x = torch.empty(shape, dtype=dtype)
    with _Traffic() as counter:
        net(x).float().sum().backward()
    return counter.bytes
