"""Whether tensors are what they were a step before, as far as a stage looks at them.

Python takes as long to look at the dtype, the device and the shape of a net's parameters as autograd takes to save
them. Dynamo has to compare them, too, whenever it calls what it has compiled, and does it in C++.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._C._dynamo.guards import TensorGuards


class Alike:
    """Of tensors: their classes, dtypes, devices, shapes, strides, and whether they require gradients."""

    def __init__(self, tensors: Sequence[Tensor]):
        sizes: Any = [list(t.shape) for t in tensors]
        strides: Any = [list(t.stride()) for t in tensors]
        self._guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        self.dtypes = [t.dtype for t in tensors]
        self.devices = {t.device for t in tensors}

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are; never where another dispatch of PyTorch's is active, autocast or a mode."""
        return self._guards.check(*tensors)
