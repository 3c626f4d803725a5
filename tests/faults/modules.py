"""Faults in modules: which may run fused, what has changed since they were read, and running statistics."""

from . import Fault, contract

MODULES = "densenet_fast/modules"
RUNNING, ELIGIBLE, SNAPSHOT = (f"{MODULES}/{name}.py" for name in ("running_stats", "eligibility", "snapshot"))
STEPS = contract("eager", "test_steps.py")


def fallback(words: str) -> tuple[str, ...]:
    return ("tests/test_fallback.py", "-k", words)


def changes(words: str) -> tuple[str, ...]:
    return ("tests/test_changes.py", "-k", words)


CHANGED = fallback("changed")
FAULTS = [
    Fault(
        "a forward replaced on an instance is not compiled anew",
        ELIGIBLE,
        "        hasattr(module, method)",
        "        pass",
        ("tests/test_compile.py", "-k", "forward and instance"),
    ),
    Fault(
        "a compiled stage keeps its bottlenecks, efficient or not",
        "densenet_fast/stage/operator.py",
        "learns and not efficient and spec",
        "learns and spec",
        ("tests/test_compile.py", "-k", "bytes_kept and aot_eager"),
    ),
    Fault(
        "what comes back to a block's output in a graph is lost",
        "densenet_fast/stage/operator.py",
        "        dbuffer = dbuffer[:, : spec.total]\n",
        "        dbuffer = torch.zeros_like(dbuffer[:, : spec.total])\n",
        ("tests/test_intermediates.py", "-k", "compiled_net_gives"),
    ),
    Fault(
        "a block's output in a graph is a copy",
        "densenet_fast/stage/operator.py",
        "wanted.buffer) and buffer.shape[1] != spec.total:",
        "wanted.buffer):",
        ("tests/test_intermediates.py", "-k", "compiled_net_copies"),
    ),
    Fault(
        "a biased variance in the running average",
        RUNNING,
        "var * (count / (count - 1))",
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
    Fault(
        "batches are not counted",
        RUNNING,
        "            counted = self._others_counted if counters else counted\n",
        "            counters, counted = [], self._others_counted\n",
        STEPS,
    ),
    Fault("batches of averages are not counted", RUNNING, "        if counted:\n", "        if False:\n", STEPS),
    Fault(
        "statistics that are no longer tracked move",
        RUNNING,
        "and norm.training and norm.track_running_stats",
        "and norm.training",
        contract("eager", "test_modes.py"),
    ),
    Fault(
        "a norm that is used twice is updated once",
        RUNNING,
        "for norm, columns in found]\n\n\nclass",
        "for norm, columns in dict(found).items()]\n\n\nclass",
        STEPS,
    ),
    Fault(
        "a norm's second update is written first",
        RUNNING,
        "for norm, columns in found]\n\n\nclass",
        "for norm, columns in reversed(found)]\n\n\nclass",
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
        ("tests/test_drop_in.py", "-k", "hooks_see_running_statistics"),
    ),
    Fault(
        "hooks are not called",
        ELIGIBLE,
        "module._forward_hooks or module._forward_pre_hooks",
        "module._forward_pre_hooks",
        CHANGED,
    ),
    Fault(
        "hooks on all modules are not called",
        ELIGIBLE,
        "if _global._has_any_global_hook() and not _are_trackers():",
        "if False:",
        fallback("global_hooks"),
    ),
    Fault(
        "a forward replaced on an instance is not called",
        ELIGIBLE,
        "    if method in module.__dict__:\n",
        "    if False:\n",
        CHANGED,
    ),
    Fault(
        "a forward replaced on a class is not called",
        ELIGIBLE,
        "    if not _is_as_written(cls, method):\n",
        "    if False:\n",
        changes("of_a_class"),
    ),
    Fault(
        "a forward replaced on a class later is not seen",
        SNAPSHOT,
        "            and self._of_classes() == self._methods\n",
        "",
        changes("of_a_class"),
    ),
    Fault(
        "a convolution's inner method is not called",
        ELIGIBLE,
        ' or _why_another(module, cls, "_conv_forward")',
        "",
        changes("inner and method"),
    ),
    Fault(
        "a convolution with stride is run fused",
        ELIGIBLE,
        "        and each(module.stride, dims) == (1,) * dims\n",
        "",
        CHANGED,
    ),
    Fault("a convolution with groups is run fused", ELIGIBLE, "        and module.groups == 1\n", "", CHANGED),
    Fault("a convolution's bias is left out", ELIGIBLE, "        and module.bias is None\n", "", CHANGED),
    Fault(
        "functorch is not seen",
        ELIGIBLE,
        "if torch._C._are_functorch_transforms_active():",
        "if False:",
        fallback("transforms"),
    ),
    Fault(
        "a weight of a class with its own operations is taken for its values",
        ELIGIBLE,
        "if tensor is not None and not is_stock_tensor(type(tensor)):",
        "if False:",
        fallback("another_class"),
    ),
    Fault(
        "make_fx records the fused path",
        ELIGIBLE,
        "return any(torch._C._get_dispatch_mode(key) is not None for key in _RECORDERS)",
        "return False",
        fallback("make_fx"),
    ),
    Fault(
        "a pooling of another size is run fused",
        ELIGIBLE,
        "if got != expected and not (isinstance(got, tuple) and {*got} == {expected}):",
        "if False:",
        CHANGED,
    ),
    Fault(
        "a replica reads the tensors of its original",
        SNAPSHOT,
        "            module is self._modules[0]\n",
        "            True\n",
        ("tests/test_surgery.py", "-k", "replica"),
    ),
    Fault(
        "a module that was replaced is not seen",
        SNAPSHOT,
        "            and self._have_their_children()\n",
        "",
        changes("replaced"),
    ),
    Fault(
        "another class is not seen",
        SNAPSHOT,
        "            and list(map(type, self._modules)) == self._classes\n",
        "",
        changes("class"),
    ),
    Fault(
        "a forward set between two steps is not seen",
        SNAPSHOT,
        "            and list(map(len, self._own)) == self._sizes\n",
        "",
        changes("instance"),
    ),
    Fault(
        "a forward hook set between two steps is not seen",
        SNAPSHOT,
        '"_forward_hooks", "_forward_pre_hooks"',
        '"_forward_pre_hooks"',
        changes("forward and hook"),
    ),
    Fault(
        "a backward hook set between two steps is not seen",
        SNAPSHOT,
        '"_backward_hooks", "_backward_pre_hooks"',
        '"_backward_pre_hooks"',
        changes("backward and hook"),
    ),
    Fault(
        "a norm put into another mode is not seen",
        SNAPSHOT,
        '*("training", "eps",',
        '*("eps",',
        changes("mode"),
    ),
    Fault(
        "running statistics taken away are not seen",
        SNAPSHOT,
        "list(map(type, _values(dictionaries)))",
        "[]",
        changes("statistics"),
    ),
    Fault(
        "a convolution's new dilation is not seen",
        SNAPSHOT,
        '"stride", "padding", "dilation", "groups"',
        '"stride", "groups"',
        changes("dilation"),
    ),
    Fault(
        "a block's new backend is not seen",
        SNAPSHOT,
        '"drop_rate", "backend")',
        '"drop_rate")',
        changes("backend"),
    ),
    Fault(
        "what a transition tells kept with the block before it",
        f"{MODULES}/staging.py",
        "known = block.known if consumer is None else consumer.known",
        "known = block.known",
        changes("transition"),
    ),
    Fault(
        "weights that were cut taken for what they were",
        f"{MODULES}/staging.py",
        "if kept is None or kept.spec.shapes != shapes:",
        "if kept is None:",
        ("tests/test_surgery.py", "-k", "pruned"),
    ),
    Fault(
        "a trunk not planned again behind a module with hooks",
        f"{MODULES}/trunk.py",
        "waiting = deque(behind if taps is None else _tapped(self, behind, taps))",
        "pass",
        changes("hook_in_front"),
    ),
    Fault(
        "a hooked block taken for one that nobody watches",
        f"{MODULES}/trunk.py",
        "if why_not(module, FusableBlock if isinstance(module, FusableBlock) else FusableTransition) is not None:",
        "if False:",
        fallback("hooks_on_blocks"),
    ),
    Fault(
        "a norm on running statistics takes the batch's",
        f"{MODULES}/reading.py",
        '(norm.training or norm._buffers["running_mean"] is None)',
        "True",
        contract("eager and freeze_every_second", "test_modes.py"),
    ),
]
