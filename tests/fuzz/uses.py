"""A case's use of a model, and everything somebody could see of it: values, memory formats, facts, the error."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .build import Rounding, copied, image_like, seed
from .cases import Case, Hook


@dataclass
class Outcome:
    """`values` by what they are: "gradient features.conv0.weight". `formats`: whether contiguous in NCHW, in NHWC."""

    values: dict[str, Tensor] = field(default_factory=dict)
    formats: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    error: Exception | None = None
    phase: str = ""
    amplification: float = 0.0
    fewest: float = 0.0
    held: dict[str, Tensor] = field(default_factory=dict)  # what hooks keep, to be looked at in the end
    rounding: Rounding | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        """See the sum of all tensors of the name."""
        before = self.values.get(name)
        self.see(name, tensor)
        if before is not None:
            self.values[name] += before

    def see(self, name: str, tensor: Tensor) -> None:
        self.values[name] = tensor.detach().clone()
        self.facts[name] = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        if tensor.dim() == 4:
            formats = (torch.contiguous_format, torch.channels_last)
            self.formats[name] = tuple(tensor.is_contiguous(memory_format=f) for f in formats)


def run(
    model: nn.Module,
    case: Case,
    dtype: torch.dtype,
    *,
    at_once: bool = False,
    backend: str = "",
    rounding: Rounding | None = None,
) -> Outcome:
    """The use of the case. `at_once`: backward after each forward, before anything else: what delayed ones must equal.

    `backend` of ours, none for stock. `rounding` of parameters and images.
    """
    seen = Outcome(rounding=rounding)
    if rounding is not None:
        with torch.no_grad():
            for i, (_, parameter) in enumerate(sorted(model.named_parameters())):
                parameter.copy_(rounding(parameter, i))
    model = _copy_used(model, case, dtype)
    if backend:
        _set_backend(model, case, backend)
    _hook(model, case, seen)
    seed(0)
    try:
        _steps(model, case, dtype, at_once, bool(backend), seen)
    except Exception as error:
        # Without its frames: in them a failed checkpoint holds its hooks on all that autograd saves from now on.
        seen.error = error.with_traceback(None)
        seen.error.__context__ = seen.error.__cause__ = None
    if case.use.checkpoint:  # stock's second forward takes statistics again, as far as it runs
        return seen
    for name, buffer in model.named_buffers():
        seen.values[f"statistic {name}"] = buffer.clone()
    return seen


def _copy_used(model: nn.Module, case: Case, dtype: torch.dtype) -> nn.Module:
    """A copy of a model that has run once, if the case wants one."""
    if not case.use.copied:
        return model
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.no_grad(), suppress(RuntimeError, ValueError, TypeError):  # the case itself will say so
        model.eval()(image_like(case, 9, case.net.in_channels, dtype)[1])
    model = copied(model, case.use.copied)
    for name, module in model.named_modules():
        module.training = modes[name]
    return model


def _set_backend(model: nn.Module, case: Case, backend: str) -> None:
    model.set_backend(backend)
    for i in case.net.plain:
        block = getattr(model.features, f"denseblock{i}")
        if hasattr(block, "set_backend"):
            block.set_backend("plain")


def _steps(model: nn.Module, case: Case, dtype: torch.dtype, at_once: bool, ours: bool, seen: Outcome) -> None:
    use = case.use
    waiting: list[tuple[int, Tensor, Tensor]] = []
    images = []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for i in range(use.forwards):
        seen.phase = f"forward {i}"
        if i and use.switch and ours:
            _set_backend(model, case, use.switch)
        call, channels = entry(model, case)
        leaf, x = image_like(case, i, channels, dtype, seen.rounding)
        images.append(leaf)
        waiting.append((i, _forward(call, x, case, seen, i), leaf))
        if use.accumulate or at_once:
            _backward(model, case, waiting, seen)
        if use.edit and use.edited == "input":
            with torch.set_grad_enabled(False):
                _edit(leaf.detach(), use.edit)
        _between(model, use.between, before)
    _backward(model, case, waiting, seen)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            seen.see(f"gradient {name}", parameter.grad)
    for name, tensor in seen.held.items():
        seen.values[name] = tensor.detach().clone()
    for i, leaf in enumerate(images):
        seen.values[f"caller's image {i}"] = leaf.detach().clone()
        if leaf.grad is not None:
            seen.values[f"gradient of image {i}"] = leaf.grad.clone()


def _forward(call, x: Tensor, case: Case, seen: Outcome, i: int) -> Tensor:
    use = case.use
    with ExitStack() as stack:
        if use.mode in ("no_grad", "inference_mode"):
            stack.enter_context(getattr(torch, use.mode)())
        if use.autocast:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        y = checkpoint(call, x, use_reentrant=False) if use.checkpoint else call(x)
        if use.edit and use.edited == "output":
            seen.see(f"output {i} unedited", y)
            _edit(y, use.edit)
    seen.see(f"output {i}", y)
    return y


def _edit(t: Tensor, how: str) -> None:
    getattr(t, how)(*{"relu_": (), "mul_": (0.5,), "add_": (0.25,)}[how])


def _between(model: nn.Module, what: str, before: dict[str, Tensor]) -> None:
    if what in ("train", "eval"):
        model.train(what == "train")
    elif what == "statistics":
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.mul_(0.5).add_(0.25)
    elif what == "state_dict":
        model.load_state_dict(before)


def _backward(model: nn.Module, case: Case, waiting: list[tuple[int, Tensor, Tensor]], seen: Outcome) -> None:
    """One backward of all outputs that wait for it."""
    ready, mode = [w for w in waiting if w[1].requires_grad], case.use.mode
    waiting.clear()
    if not ready or mode not in ("backward", "twice", "input"):
        return
    seen.phase = "backward"
    cotangents = [torch.randn(y.shape, generator=torch.Generator().manual_seed(i)).to(y.dtype) for i, y, _ in ready]
    total = sum((y * cotangent).sum() for (_, y, _), cotangent in zip(ready, cotangents, strict=True))
    if mode == "input" and case.image.needs_grad:
        found = torch.autograd.grad(total, [leaf for *_, leaf in ready], allow_unused=True)
        for (i, *_), gradient in zip(ready, found, strict=True):
            if gradient is not None:
                seen.values[f"gradient of image {i} alone"] = gradient
        return
    total.backward(retain_graph=mode == "twice")
    if mode == "twice":
        total.backward()


def entry(model: nn.Module, case: Case):
    """What the case calls, and the channels of the image it takes."""
    use, net = case.use, case.net
    names, channels = net.children(), net.channels()
    if use.entry == "model":
        return model, net.in_channels
    if use.entry == "features":
        return model.features, net.in_channels
    if use.entry == "slice":
        return model.features[: use.at + 1], net.in_channels
    at = use.at
    if use.entry == "layer":
        blocks = [i for i, name in enumerate(names) if name.startswith("denseblock")]
        at = blocks[use.at % len(blocks)]
        layers = [m for m in model.features[at].modules() if hasattr(m, "norm1")]
        if layers:
            return _called_on_list(layers[-1], channels[at]), channels[at] + (len(layers) - 1) * net.growth
    if use.entry in ("part", "layer"):
        return model.features[at], channels[at]
    return _by_hand(model.features[: at + 1], use.entry == "layers"), net.in_channels


def _called_on_list(layer: nn.Module, first: int):
    return lambda x: layer(list(x.split([first, *[1] * (x.shape[1] - first)], 1)))


def _by_hand(children: nn.Sequential, opened: bool):
    """The children one after another; `opened`: the blocks' layers too, on lists and on tensors in turn."""

    def call(x: Tensor) -> Tensor:
        for child in children:
            if opened and isinstance(child, nn.ModuleDict):
                features = [x]
                for i, layer in enumerate(child.values()):
                    features.append(layer(features if i % 2 else torch.cat(features, 1)))
                x = torch.cat(features, 1)
            else:
                x = child(x)
        return x

    return call


def _hook(model: nn.Module, case: Case, seen: Outcome) -> None:
    """Hooks at the modules of the case. A path that a replaced module has cut off is left out."""
    modules = dict(model.named_modules())
    for number, hook in enumerate(case.hooks):
        if hook.path in modules:
            _listen(modules[hook.path], hook, f"hook {number} {hook.path} {hook.kind}", seen, case)


def _listen(module: nn.Module, hook: Hook, name: str, seen: Outcome, case: Case) -> None:
    calls = 0

    def act(tensors):
        """Look at each tensor of a structure, and return it changed."""
        nonlocal calls
        calls += 1
        seen.facts[f"{name} calls"] = calls
        if tensors is None:  # a hook that is always called, of a module that failed
            return None
        flat = [tensors] if isinstance(tensors, Tensor) else _flat(tensors)
        for i, t in enumerate(flat):
            if t is not None and "backward" in hook.kind:  # whose calls come in another order
                seen.add(f"{name} {i}", t)
            elif t is not None:
                seen.see(f"{name} {calls}.{i}", t)
                seen.held[f"{name} {calls}.{i} in the end"] = t
                if hook.effect == "edit":
                    t.mul_(1.25)
        if hook.effect == "change":
            return _mapped(tensors)
        return None

    if hook.kind == "forward":
        module.register_forward_hook(lambda m, args, y: act(y))
    elif hook.kind == "always_call":
        module.register_forward_hook(lambda m, args, y: act(y), always_call=True)
    elif hook.kind == "forward_pre":
        module.register_forward_pre_hook(lambda m, args: act(args))
    elif hook.kind == "full_backward":
        module.register_full_backward_hook(lambda m, dx, dy: act(dx))
    else:
        module.register_full_backward_pre_hook(lambda m, dy: act(dy))


def _flat(tensors) -> list[Tensor | None]:
    return [u for t in tensors for u in ([t] if t is None or isinstance(t, Tensor) else _flat(t))]


def _mapped(tensors):
    if tensors is None:
        return None
    if isinstance(tensors, Tensor):
        return tensors * 1.5 + 0.125
    return type(tensors)(_mapped(t) for t in tensors)


def fragile(case: Case) -> bool:
    """Whether something is written between a forward and its backward, which stock layers may not survive."""
    use = case.use
    return bool(use.between) or use.edited == "input" or (use.forwards > 1 and not use.accumulate)
