"""When the fused path does not apply: each predicate answers with the reason, or None.

The fused path reads a module's tensors and never calls it, so it must be sure that calling it would do exactly what
its class says: a stock forward, stock attributes, nobody listening.
"""

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _global


def is_traced(x: object) -> bool:
    """Whether a graph of the plain layers is being recorded: torch.export, ONNX, torch.jit.trace, torch.fx."""
    exporting = torch.compiler._is_exporting_flag  # to `is_exporting` Dynamo answers True under torch.compile, too
    return not isinstance(x, Tensor) or torch.jit.is_tracing() or exporting


def why_not_now() -> str | None:
    """A transform or hook that is active around the call and that the fused stage has no rule for."""
    if torch._C._functorch.maybe_current_level() is not None:
        return "a torch.func transform is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if _global._has_any_global_hook() and not _are_trackers():
        return "every module has hooks"
    return None


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
    return type(module).forward is cls.forward and not _has_own_forward(module)


def _has_own_forward(module: nn.Module) -> bool:
    """Whether `forward` was replaced on the instance."""
    if torch.compiler.is_compiling():
        hasattr(module, "forward")  # which the compiler guards; a look into __dict__ it does not
    return "forward" in module.__dict__


def why_not(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Why `module` cannot be taken for a stock `cls` called by nobody else."""
    if not isinstance(module, cls):
        return f"is {type(module).__name__}, not {cls.__name__}"
    if _has_own_forward(module):
        return "has a forward that was replaced on the instance"
    if type(module).forward is not cls.forward:
        return f"is {type(module).__name__}, whose forward is not {cls.__name__}'s"
    if is_hooked(module):
        return "has hooks"
    return None


def why_not_conv(module: nn.Module, kernel: int) -> str | None:
    """Why `module` is not a plain kernel x kernel convolution that keeps the image size."""
    reason = why_not(module, nn.Conv2d)
    if reason is not None:
        return reason
    stock = (
        module.kernel_size == (kernel, kernel)
        and module.stride == (1, 1)
        and module.padding == (kernel // 2, kernel // 2)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.bias is None
        and (module.padding_mode == "zeros" or kernel == 1)
        and type(module)._conv_forward is nn.Conv2d._conv_forward
    )
    return None if stock else f"is not a plain {kernel}x{kernel} convolution: {module}"


def why_not_norm(module: nn.Module) -> str | None:
    """Why `module` is neither a BatchNorm2d nor torchvision's FrozenBatchNorm2d, which has no parameters."""
    if not isinstance(module, nn.BatchNorm2d):
        torchvision = sys.modules.get("torchvision.ops.misc")  # where nobody has imported it, there is none
        if torchvision is not None and isinstance(module, torchvision.FrozenBatchNorm2d):
            return why_not(module, torchvision.FrozenBatchNorm2d)
    reason = why_not(module, nn.BatchNorm2d)
    if reason is None and module.training and module.track_running_stats and module.momentum is None:
        return None if module.num_batches_tracked is not None else "has no num_batches_tracked"
    return reason


def why_not_pool(module: nn.Module, cls: type[nn.Module], **attributes: object) -> str | None:
    """Why `module` is not a stock pooling `cls` with the given attributes (a pair and a number mean the same)."""
    reason = why_not(module, cls)
    if reason is not None:
        return reason
    for name, expected in attributes.items():
        got = getattr(module, name)
        if got != expected and got != (expected, expected):
            return f"has {name}={got}"
    return None


Predicate = Callable[[nn.Module], str | None]


def why_not_parts(module: nn.Module, parts: Mapping[str, Predicate]) -> str | None:
    """`name reason` for the first child that its predicate in `parts` refuses."""
    children = module._modules  # found ten times as fast as attributes
    for name, why in parts.items():
        child = children.get(name)
        reason = "is missing" if child is None else why(child)
        if reason is not None:
            return f"{name} {reason}"
    return None
