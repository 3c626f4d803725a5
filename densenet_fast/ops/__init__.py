"""The contract of operations: what every backend computes, and how one is called.

Each file of this package names its operations, their schemas and their fakes; `densenet_fast/backends/<name>/` holds
one implementation of each under the same file stem. An operation `foo` of backend `bar` is the PyTorch operator
`densenet_fast::foo.bar`: one name, one overload per backend, one schema.

Conventions (docs/internals/code-and-contract.md):
- Activations are `[N, C, H, W]` tensors whose memory is NHWC: stride 1 along C, any row stride (channel slices of a
  dense block's buffer). Weights are PyTorch's, in the activations' dtype.
- `mean, var, gamma, beta` and every sum are vectors in the accumulator dtype (float64 for float64, else float32).
  A BatchNorm is passed as `mean, var, gamma, beta, eps`; `var` is biased, `gamma` and `beta` may be None.
- What has a place in the block (`Tensor(a!)`) is written there; what is new is returned. A result that was not asked
  for is an empty tensor.
- A backward operation ends with its norm's own gradient (docs/internals/algorithm.md). With v the gradient
  at the norm's output, sum_v = sum(v), sum_vx = sum(v * (x - mean)), scale = gamma * rstd and count = N * H * W:
    dgamma = sum_vx * rstd,  dbeta = sum_v,  dx = scale * v - a - b * (x - mean),
  where a += scale * dbeta / count and b += scale * rstd * dgamma / count [C] if `batch_stats`. They are added to,
  because layers that normalise the same channel share one correction.
- Same input, same machine, same thread count: the same bits.
"""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import batch_norm, bn_relu_conv1x1, bn_relu_conv3x3, bottleneck, dense_block, head, stem, transition
from ._operation import Operation

OPERATIONS: tuple[Operation, ...] = (
    *batch_norm.OPERATIONS,
    *bn_relu_conv1x1.OPERATIONS,
    *bn_relu_conv3x3.OPERATIONS,
    *bottleneck.OPERATIONS,
    *transition.OPERATIONS,
    *stem.OPERATIONS,
    *head.OPERATIONS,
)

# Those that a backend may leave out.
OPTIONAL: tuple[Operation, ...] = dense_block.OPERATIONS

_library = torch.library.Library("densenet_fast", "FRAGMENT")
_loaded: dict[str, SimpleNamespace] = {}


def register(backend: str, implementation: ModuleType, dispatch_key: str | None) -> None:
    """Define `densenet_fast::<op>.<backend>` for every operation, and those of `OPTIONAL` that the backend has,
    implemented by the module's function `<op>`.

    `dispatch_key` is the PyTorch dispatch key the functions serve, for instance "CompositeExplicitAutograd" for any
    device; None if a compiled library has registered its own implementations, of all.
    """
    has = (o for o in OPTIONAL if dispatch_key is None or hasattr(implementation, o.name))
    operations = (*OPERATIONS, *has)
    for operation in operations:
        overload = f"{operation.name}.{backend}"
        _library.define(f"{overload}{operation.schema}")
        if dispatch_key is not None:
            _library.impl(overload, getattr(implementation, operation.name), dispatch_key)
        _library.impl(overload, _on_meta(operation), "Meta")
    collect(backend, operations)


def _on_meta(operation: Operation) -> Callable[..., Any]:
    """The fake, which is also called where one tensor alone is on the meta device, and would do nothing, unnoticed."""

    def fake(*args: Any) -> Any:
        elsewhere = {str(t.device) for t in tree_leaves(args) if isinstance(t, Tensor) and not t.is_meta}
        if elsewhere:
            raise RuntimeError(
                f"densenet_fast::{operation.name}: wrong device: got tensors on meta and on {', '.join(elsewhere)}, "
                "expected one device"
            )
        return operation.fake(*args)

    return fake


def collect(backend: str, operations: tuple[Operation, ...] = OPERATIONS) -> None:
    """Remember the overloads of a backend whose operators have been registered."""
    overloads = {o.name: getattr(getattr(torch.ops.densenet_fast, o.name), backend) for o in operations}
    _loaded[backend] = SimpleNamespace(**overloads)


def of(backend: str) -> SimpleNamespace:
    """The operations of a loaded backend: `of("eager").bn_relu_conv1x1_fwd(...)`."""
    return _loaded[backend]
