"""When the fused path does not apply: each predicate answers with the reason, or None.

The fused path reads a module's tensors and never calls it, so it must be sure that calling it would do exactly what
its class says: a stock forward, stock attributes, nobody listening.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from inspect import isfunction
from operator import attrgetter
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _global
from torch.nn.modules.batchnorm import _BatchNorm

from ..uncompiled import constant

# Of make_fx, and of AOTAutograd, which learns first what is to be recorded.
_RECORDERS = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL


def is_traced(x: object) -> bool:
    """Whether a graph of the plain layers is being recorded: torch.export, ONNX, torch.jit.trace, torch.fx, make_fx."""
    exporting = torch.compiler._is_exporting_flag  # to `is_exporting` Dynamo answers True under torch.compile, too
    if not isinstance(x, Tensor) or torch.jit.is_tracing() or exporting:
        return True
    if torch.compiler.is_compiling():
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in _RECORDERS)


def why_not_now() -> str | None:
    """A transform or hook that is active around the call and that the fused stage has no rule for."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if _global._has_any_global_hook() and not _are_trackers():
        return "every module has hooks"
    if not _are_functions_as_written():
        return "a function that modules call, of torch.nn.functional, was replaced"
    return None


_of_functional = attrgetter(
    *("conv1d", "conv2d", "conv3d", "batch_norm", "relu", "dropout"),
    *(f"{kind}_pool{dims}d" for kind in ("avg", "max") for dims in (1, 2, 3)),
)
_AS_WRITTEN = _of_functional(F), torch.cat


@constant
def _are_functions_as_written() -> bool:
    return (_of_functional(F), torch.cat) == _AS_WRITTEN


def _are_trackers() -> bool:
    """Whether all hooks on all modules are those of FlopCounterMode and its kind, which only want to know where a
    forward is: that must not change what it counts."""
    trackers = sys.modules.get("torch.utils.module_tracker")  # where nobody has imported it, there is none
    hooks = [*_global._global_forward_pre_hooks.values(), *_global._global_forward_hooks.values()]
    others = _global._global_backward_pre_hooks or _global._global_backward_hooks
    return (
        trackers is not None
        and not others
        and all(isinstance(getattr(hook, "__self__", None), trackers.ModuleTracker) for hook in hooks)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody listens to calls of `module` itself (`why_not_now` knows of those who listen to all)."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def runs_as(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling `module` runs the forward that `cls` defines (a subclass may add anything else)."""
    return _why_other_call(module, cls) is None


def _why_other_call(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Why calling `module` does something else than the forward that `cls` defines, hooks aside."""
    reason = _why_another(module, cls, "forward")
    if reason is not None:
        return reason
    if "_call_impl" in module.__dict__ or not _is_called_as_written(type(module)):
        return f"is {type(module).__name__}, whose __call__ was replaced"
    return None


def why_other_helpers(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Why a method that the forward of `cls` calls is another for `module`."""
    return next((reason for name in helpers(cls) if (reason := _why_another(module, cls, name)) is not None), None)


def _why_another(module: nn.Module, cls: type[nn.Module], method: str) -> str | None:
    """Why a method of `module` is not what whoever wrote `cls` has written."""
    if torch.compiler.is_compiling():
        hasattr(module, method)  # which the compiler guards; a look into __dict__ it does not
    if method in module.__dict__:
        return f"has a {method} that was replaced on the instance"
    if getattr(type(module), method) is not getattr(cls, method) and not _stands_for(type(module), cls, method):
        return f"is {name_beside(module, cls.__name__)}, whose {method} is not {cls.__name__}'s"
    if not _is_as_written(cls, method):
        return f"is {type(module).__name__}, whose {method} was replaced on the class"
    return None


def name_beside(module: nn.Module, other: str) -> str:
    """The name of the class of `module`, with where it is from if `other` has the same."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__name__}" if cls.__name__ == other else cls.__name__


@constant
def _stands_for(other: type[nn.Module], cls: type[nn.Module], method: str) -> bool:
    """Whether a method of a converted part's class does what that of `cls` does, called as its library's."""
    return getattr(getattr(other, method), "stands_for", None) is getattr(cls, method)


@constant
def _is_as_written(cls: type[nn.Module], method: str) -> bool:
    """Whether nobody has set a function of his own on the class."""
    owner = next(base for base in cls.__mro__ if method in base.__dict__)
    function = owner.__dict__[method]
    origin = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return origin == (owner.__module__, f"{owner.__qualname__}.{method}") and not hasattr(function, "__wrapped__")


@constant
def _is_called_as_written(cls: type[nn.Module]) -> bool:
    """Whether nobody has replaced what runs hooks and forward, for this class or for all."""
    run: Any = cls._call_impl
    as_written = getattr(run, "__qualname__", None) == "Module._call_impl" and not hasattr(run, "__wrapped__")
    return as_written and cls.__call__ is nn.Module._wrapped_call_impl


@constant
def helpers(cls: type[nn.Module]) -> tuple[str, ...]:
    """The methods of `cls` that its forward calls, and that these call in turn, such as _conv_forward."""
    return _helpers(cls)  # type: ignore[arg-type]


@cache
def _helpers(cls: Any) -> tuple[str, ...]:
    found: list[str] = []
    functions: list[Any] = [cls.forward]
    for function in functions:
        for name in _names(getattr(function, "__code__", None)):
            method = getattr(cls, name, None)
            if isfunction(method) and not hasattr(nn.Module, name) and name not in found:
                found.append(name)
                functions.append(method)
    return tuple(found)


def _names(code: CodeType | None) -> Iterator[str]:
    """That code looks up, and functions inside it."""
    if code is not None:
        yield from code.co_names
        for constant_ in code.co_consts:
            yield from _names(constant_ if isinstance(constant_, CodeType) else None)


def why_not(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Why `module` cannot be taken for a stock `cls` called by nobody else."""
    if not isinstance(module, cls):
        return f"is {name_beside(module, cls.__name__)}, not {cls.__name__}"
    reason = _why_other_call(module, cls)
    if reason is None and is_hooked(module):
        return "has hooks"
    return reason


# By dimensions of the image.
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE_POOLS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
MAX_POOLS: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
CHANNEL_DROPOUTS: dict[int, Any] = {2: nn.Dropout2d, 3: nn.Dropout3d}


def is_convolution(module: nn.Module) -> bool:
    """Whether calling `module` does what a stock convolution does, of any dimensions."""
    for cls in (nn.Conv2d, nn.Conv3d, nn.Conv1d):
        if isinstance(module, cls):
            return why_not(module, cls) is None
    return False


def is_stem_convolution(module: nn.Module, dims: int) -> bool:
    """Whether a stage can do what calling `module` does: a stock convolution of images of `dims` dimensions that pads
    zeros, with its own parameters (a parametrization would show that it is evaluated once more)."""
    cls = CONVOLUTIONS[dims]
    return (
        _why_no_stock_conv(module, cls) is None
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module._parameters.get("weight") is not None
        and "bias" in module._parameters
    )


def _why_no_stock_conv(module: nn.Module, cls: type[nn.Module]) -> str | None:
    return why_not(module, cls) or _why_another(module, cls, "_conv_forward") or _why_other_tensors(module)


def _why_other_tensors(module: nn.Module) -> str | None:
    """Why operations on the parameters and buffers of `module` may do something else than on a Tensor's values, or its
    attributes be others than these."""
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is not None and not is_stock_tensor(type(tensor)):
                return f"has a {name} of class {type(tensor).__name__}"
            if not _is_found(type(module), name):
                return f"is {type(module).__name__}, which has a {name} of its own making"
    return None


@constant
def _is_found(cls: type[nn.Module], name: str) -> bool:
    """Whether an attribute is what PyTorch finds under its name among parameters and buffers."""
    return cls.__getattr__ is nn.Module.__getattr__ and not hasattr(cls, name)


@constant
def is_stock_tensor(cls: type) -> bool:
    """Whether tensors of this class have no operations of their own: not for instance a DTensor, nor quantized."""
    if cls is Tensor or (cls.__module__, cls.__name__) == ("torch._subclasses.fake_tensor", "FakeTensor"):
        return True
    has_none = cls.__torch_function__ is torch._C._disabled_torch_function_impl  # type: ignore[attr-defined]
    return has_none and cls.__torch_dispatch__ is Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def dilation_of(convolution: Any) -> int:
    return each(convolution.dilation)[0]


def each(value: Any, dims: int = 1) -> tuple[Any, ...]:
    """An attribute of a convolution for each dimension; PyTorch takes one number for all, too."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


def why_not_conv(module: nn.Module, kernel: int, dims: int = 2) -> str | None:
    """Why `module` is not a plain kernel x kernel convolution, dilated or not, that keeps the size of images of `dims`
    dimensions."""
    cls = CONVOLUTIONS[dims]
    reason = _why_no_stock_conv(module, cls)
    if reason is not None:
        return reason
    stock = (
        each(module.kernel_size, dims) == (kernel,) * dims
        and each(module.stride, dims) == (1,) * dims
        and each(module.padding, dims) == (kernel // 2 * dilation_of(module),) * dims
        and each(module.dilation, dims) == (dilation_of(module),) * dims
        and module.groups == 1
        and module.bias is None
        and (module.padding_mode == "zeros" or kernel == 1)
    )
    if stock:
        return None
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    got = ", ".join(f"{name}={getattr(module, name)}" for name in names)
    return f"is not a plain {'x'.join([str(kernel)] * dims)} convolution: got {got}, bias={module.bias is not None}"


Predicate = Callable[[nn.Module], str | None]

# Norms that are neither BatchNorm2d nor SyncBatchNorm, or that apply an activation too: a class by its library's module
# and its name, which imports nothing, and whether there is an activation inside.
_FOREIGN_NORMS = {
    ("torchvision.ops.misc", "FrozenBatchNorm2d"): False,
    ("timm.layers.norm_act", "BatchNormAct2d"): True,
    ("timm.layers.norm_act", "FrozenBatchNormAct2d"): True,
    ("timm.layers.norm_act", "SyncBatchNormAct"): True,
}


def _foreign_norm(module: nn.Module | None) -> tuple[type[nn.Module], bool] | None:
    for cls in type(module).__mro__:
        activates = _FOREIGN_NORMS.get((cls.__module__, cls.__name__))
        if activates is not None:
            return cls, activates
    return None


def has_activation(norm: nn.Module | None) -> bool:
    """Whether `norm` is one of timm's, which apply the activation too."""
    if type(norm) is nn.BatchNorm2d:
        return False
    foreign = _foreign_norm(norm)
    return foreign is not None and foreign[1]


_ACTIVATION: dict[str, Predicate] = {
    "act": lambda module: why_not(module, nn.ReLU),
    "drop": lambda module: why_not(module, nn.Identity),
}


def why_not_norm(module: nn.Module, dims: int = 2) -> str | None:
    """Why `module` is neither a BatchNorm of images of `dims` dimensions, a SyncBatchNorm, nor in two dimensions a
    frozen norm of torchvision or one of timm's with a ReLU inside."""
    foreign = None if dims != 2 or type(module) is nn.BatchNorm2d else _foreign_norm(module)
    cls, activates = foreign or (nn.SyncBatchNorm if isinstance(module, nn.SyncBatchNorm) else NORMS[dims], False)
    reason = why_not(module, cls) or (why_not_parts(module, _ACTIVATION) if activates else None)
    reason = reason or _why_other_tensors(module)
    if reason is not None or not isinstance(module, _BatchNorm):
        return reason
    if "running_mean" not in module._buffers or "running_var" not in module._buffers:
        return "has running statistics that are no buffers"
    if (module._buffers["running_mean"] is None) != (module._buffers["running_var"] is None):
        return "has one of two running statistics"
    if module.eps <= 0:  # which PyTorch refuses
        return f"has an eps of {module.eps}"
    must_count = module.momentum is None or isinstance(module, nn.SyncBatchNorm)
    counts = not (module.training and module.track_running_stats) or module.num_batches_tracked is not None
    return None if counts or not must_count else "has no num_batches_tracked"


def why_not_pool(module: nn.Module, cls: type[nn.Module], **attributes: object) -> str | None:
    """Why `module` is not a stock pooling `cls` with the given attributes, None for one that it has not. A number means
    the same as one for each dimension."""
    reason = why_not(module, cls)
    if reason is not None:
        return reason
    for name, expected in attributes.items():
        got = getattr(module, name, None)
        if got != expected and not (isinstance(got, tuple) and {*got} == {expected}):
            return f"has {name}={got}"
    return None


def why_not_parts(module: nn.Module, parts: Mapping[str, Predicate]) -> str | None:
    """`name reason` for the first child that its predicate in `parts` refuses."""
    children = module._modules  # found ten times as fast as attributes
    for name, why in parts.items():
        child = children.get(name)
        reason = "is missing" if child is None else why(child)
        if reason is not None:
            return f"{name} {reason}"
    return None
