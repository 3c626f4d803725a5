"""Faults in what every backend shares: running statistics, and which modules may run fused."""

from . import Fault, contract

RUNNING, ELIGIBLE = "densenet_fast/running_stats.py", "densenet_fast/eligibility.py"
STEPS = contract("eager", "test_steps.py")
FALLBACK, DROP_IN = ("tests/test_fallback.py",), ("tests/test_drop_in.py",)
FAULTS = [
    Fault(
        "a biased variance in the running average",
        RUNNING,
        "var * (size / (size - 1))",
        "var",
        contract("eager", "test_steps.py", "test_modes.py"),
    ),
    Fault(
        "momentum=None averages one batch too few",
        RUNNING,
        "norm.num_batches_tracked.to(mean.dtype).reciprocal()",
        "(norm.num_batches_tracked + 1).to(mean.dtype).reciprocal()",
        contract("eager", "test_steps.py", "test_modes.py"),
    ),
    Fault("batches are not counted", RUNNING, "torch._foreach_add_(counters, 1)", "pass", STEPS),
    Fault(
        "statistics that are no longer tracked move",
        RUNNING,
        "if norm.training and norm.track_running_stats and norm.running_mean is not None:",
        "if norm.training and norm.running_mean is not None:",
        contract("eager", "test_modes.py"),
    ),
    Fault(
        "a norm that is used twice is updated once",
        RUNNING,
        "(again if id(update.norm) in seen else first_of_each).append(update)",
        "_ = None if id(update.norm) in seen else first_of_each.append(update)",
        STEPS,
    ),
    Fault(
        "a norm's second update is written first",
        RUNNING,
        "            for update in pending:\n                (again",
        "            for update in reversed(pending):\n                (again",
        STEPS,
    ),
    Fault(
        "a failing forward leaves statistics written",
        RUNNING,
        "        new.roll_back()\n",
        "",
        STEPS,
    ),
    Fault(
        "a plain layer's statistics are not restored",
        RUNNING,
        "                self._remember(norm)\n\n    def write",
        "                pass\n\n    def write",
        STEPS,
    ),
    Fault(
        "statistics are written behind a hook that reads them",
        RUNNING,
        "        outer.write()  # hooks on `module` come next\n",
        "",
        (*FALLBACK, *DROP_IN),
    ),
    Fault(
        "hooks are not called",
        ELIGIBLE,
        "module._forward_hooks or module._forward_pre_hooks",
        "module._forward_pre_hooks",
        FALLBACK,
    ),
    Fault("hooks on all modules are not called", ELIGIBLE, "if _has_any_global_hook():", "if False:", FALLBACK),
    Fault(
        "a forward replaced on an instance is not called",
        ELIGIBLE,
        '    if "forward" in module.__dict__:\n',
        "    if False:\n",
        FALLBACK,
    ),
    Fault("a convolution with stride is run fused", ELIGIBLE, "        and module.stride == (1, 1)\n", "", FALLBACK),
    Fault("a convolution with groups is run fused", ELIGIBLE, "        and module.groups == 1\n", "", FALLBACK),
    Fault("a convolution's bias is left out", ELIGIBLE, "        and module.bias is None\n", "", FALLBACK),
    Fault(
        "functorch is not seen",
        ELIGIBLE,
        "if torch._C._functorch.maybe_current_level() is not None:",
        "if False:",
        FALLBACK,
    ),
    Fault(
        "a pooling of another size is run fused",
        ELIGIBLE,
        "if got != expected and got != (expected, expected):",
        "if False:",
        FALLBACK,
    ),
]
