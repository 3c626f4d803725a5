"""One comparison: variants of one subject, checked, measured for memory, and timed in turns.

The check comes first: outputs and gradients of the very step that is timed, at its own shapes, against stock layers in
float64 (float32 where half precision is measured). A variant may err twice as much as stock channels_last does in the
same precision; one that errs more, or fails, is not timed, and its error is what is reported.

In float32 a single ReLU whose input rounds to the other side of zero moves a small net's gradients by 1e-3, stock's or
ours by chance. So a variant that errs too much gets further batches: what is wrong errs on every batch, and the least
error of the variant is held to twice the largest of stock.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .memory import StepMemory, mean_square, measure
from .rounds import Durations, Stopwatch, Turns, lasting, take_turns
from .subjects import Subject
from .variants import BASELINE, BY_NAME, Variant

BATCHES = 5  # of images, at most, in a check

Results = dict[str, Tensor]
Known = dict[tuple[str, int], tuple[Results, dict[str, float]]]  # by family and batch: what is exact, stock's errors


class Workload(NamedTuple):
    """A subject at work: training steps or inference on batches of one size."""

    subject: Subject
    batch: int
    device: torch.device
    dtype: torch.dtype  # training: autocast's, over float32 weights; inference: that of weights and images
    training: bool

    @property
    def mode(self) -> str:
        return "training" if self.training else "inference"


class Effort(NamedTuple):
    """How much a comparison may cost: quiet rounds, seconds to go on for if they were quick, seconds for compiling."""

    rounds: int = 5
    seconds: float = 5.0
    compile_limit: float = 900.0


class Outcome(NamedTuple):
    """What became of a variant: durations by phase, memory, check (error and limit by name); or why there are none.

    missing: it cannot run here. error: it ran, and failed or was wrong.
    """

    seconds: dict[str, list[float]] = {}  # noqa: RUF012
    memory: StepMemory | None = None
    check: dict[str, tuple[float, float]] = {}  # noqa: RUF012
    missing: str | None = None
    error: str | None = None


class Comparison(NamedTuple):
    outcomes: dict[str, Outcome]
    turns: Turns | None


class Step:
    """A model's training step or inference, timed phase by phase."""

    def __init__(self, module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, training: bool):
        self.module, self.call, self.x, self.training = module, call, x, training
        self.watch = Stopwatch(x.device)

    def __call__(self) -> Durations:
        self.watch.start()
        y = self.forward()
        self.watch.mark()
        if not self.training:
            return {"inference": self.watch.seconds()[0]}
        mean_square(y).backward()
        self.watch.mark()
        forward, backward = self.watch.seconds()
        self.forget_gradients()
        return {"forward": forward, "forward+backward": forward + backward}

    def forward(self) -> Tensor:
        if self.training:
            return self.call(self.x)
        with torch.inference_mode():
            return self.call(self.x)

    def results(self) -> Results:
        """The output and, in training, all gradients as one vector: what one step computes."""
        y = self.forward()
        if self.training:
            mean_square(y).backward()
        return self.collect(y)

    def load(self, images: Tensor) -> None:
        """Put other images where the step reads them."""
        with torch.no_grad():
            self.x.copy_(images)

    def collect(self, y: Tensor) -> Results:
        if not self.training:
            return {"output": y.clone()}
        gradients = {name: p.grad for name, p in self.module.named_parameters()}
        if self.x.requires_grad:
            gradients["x"] = self.x.grad
        flat = [gradients[name].flatten() for name in sorted(gradients)]
        self.forget_gradients()
        return {"output": y.detach().clone(), "gradients": torch.cat(flat)}

    def forget_gradients(self) -> None:
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None


class GraphStep(Step):
    """The same step captured once in a CUDA graph, and replayed."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().results()
        torch.cuda.current_stream().wait_stream(stream)
        super().forget_gradients()  # so that the captured backward writes gradients instead of adding to them
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.y = self.forward()
            if self.training:
                mean_square(self.y).backward()

    def __call__(self) -> Durations:
        self.watch.start()
        self.graph.replay()
        self.watch.mark()
        return {"forward+backward" if self.training else "inference": self.watch.seconds()[0]}

    def results(self) -> Results:
        self.graph.replay()
        return self.collect(self.y)

    def forget_gradients(self) -> None:
        """Not between replays: the graph writes the gradients where they were when it was captured."""


def images(workload: Workload, number: int) -> Tensor:
    """The batch of this number, [N, C, H, W] in float32 on the CPU; the first is the one that is timed."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(workload.batch, *workload.subject.shape, generator=generator)


def build(variant: Variant, workload: Workload) -> Step:
    """The variant ready to run on the first batch, with the weights that every variant of its family gets."""
    half = workload.dtype != torch.float32
    dtype = workload.dtype if half and not workload.training else torch.float32
    return _step(variant, workload, _module(variant, workload.subject), dtype, half and workload.training)


def _module(variant: Variant, subject: Subject) -> nn.Module:
    torch.manual_seed(0)
    if variant.family not in ("stock", "ours"):
        return variant.build(subject)
    weights = subject.stock(False).state_dict()
    module = variant.build(subject)
    module.load_state_dict(weights)
    return module


def _step(variant: Variant, workload: Workload, module: nn.Module, dtype: torch.dtype, autocast: bool) -> Step:
    device = workload.device
    module = module.to(device, dtype, memory_format=variant.layout).train(workload.training)
    x = images(workload, 0).to(device, dtype).contiguous(memory_format=variant.layout)
    x.requires_grad_(workload.training and not workload.subject.is_net)
    model: Callable[[Tensor], Tensor] = module
    if variant.compile is not None:
        model = torch.compile(module, **variant.compile)

    def call(x: Tensor) -> Tensor:
        with torch.autocast(device.type, workload.dtype, enabled=autocast, cache_enabled=not variant.graph):
            return model(x)

    return (GraphStep if variant.graph else Step)(module, call if autocast else model, x, workload.training)


def compare(workload: Workload, variants: Sequence[Variant], effort: Effort) -> Comparison:
    """Check, weigh and time the variants; the baseline must be among them."""
    torch._dynamo.config.recompile_limit = 64  # one code object serves all nets here
    outcomes: dict[str, Outcome] = {}
    steps: dict[str, Step] = {}
    reference = Reference(workload)
    left = effort.compile_limit
    for variant in variants:
        start = time.monotonic()
        outcomes[variant.name], step = prepare(variant, reference, left)
        if variant.compile is not None:
            left = max(0.0, left - (time.monotonic() - start))
        if step is not None:
            steps[variant.name] = step
    if not steps:
        return Comparison(outcomes, None)
    runs = {name: partial(lasting, step) for name, step in steps.items()}
    turns = take_turns(runs, effort.rounds, effort.seconds)
    for name, seconds in turns.seconds.items():
        outcomes[name] = outcomes[name]._replace(seconds=seconds)
    return Comparison(outcomes, turns)


def prepare(variant: Variant, reference: "Reference", compile_limit: float) -> tuple[Outcome, Step | None]:
    """What is known of a variant before it is timed, and its step if it may be."""
    workload = reference.workload
    missing = variant.why_not(workload.subject, workload.device, workload.dtype)
    if missing is None and workload.mode not in variant.phases:
        missing = f"no different from another line in {workload.mode}"
    if missing is not None:
        return Outcome(missing=missing), None
    try:
        with _compiling(variant, compile_limit):
            step = build(variant, workload)
            check = reference.check(variant, step)
        memory = weigh(step) if workload.training and not variant.in_graph(workload.device) else None
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"), None
    wrong = [f"{name} errs by {e:.1e}, allowed {limit:.1e}" for name, (e, limit) in check.items() if not e <= limit]
    if wrong:
        return Outcome(memory=memory, check=check, error="; ".join(wrong)), None
    return Outcome(memory=memory, check=check), step


def weigh(step: Step) -> StepMemory:
    """Memory of a training step, what the optimizer keeps and the batch left out."""
    memory = measure(step.module, step.x, call=step.call)
    step.forget_gradients()
    return memory


class Reference:
    """The exact results of each family's stock net on each batch, and how far stock channels_last is off them."""

    def __init__(self, workload: Workload, known: Known | None = None):
        """known: what another process has found out about the same workload."""
        self.workload = workload
        self.known: Known = {} if known is None else known

    def check(self, variant: Variant, step: Step) -> dict[str, tuple[float, float]]:
        """By name of a result: the variant's error, and the error allowed."""
        family = variant.family if variant.family != "ours" else "stock"
        least: dict[str, float] = {}
        most: dict[str, float] = {}
        for number in range(BATCHES):
            exact, stock = self._on(family, number)
            step.load(images(self.workload, number))
            for name, error in errors(step.results(), exact).items():
                least[name] = min(least.get(name, math.inf), error)
                most[name] = max(most.get(name, 0.0), stock[name])
            if all(least[name] <= 2 * most[name] for name in least):
                break
        step.load(images(self.workload, 0))
        return {name: (least[name], 2 * most[name]) for name in least}

    def _on(self, family: str, number: int) -> tuple[Results, dict[str, float]]:
        if (family, number) not in self.known:
            variant = BY_NAME[BASELINE if family == "stock" else family]
            dtype = torch.float64 if self.workload.dtype == torch.float32 else torch.float32
            exact, stock = (
                _step(variant, self.workload, _module(variant, self.workload.subject), dtype, False),
                build(variant, self.workload),
            )
            results = []
            for step in (exact, stock):
                step.load(images(self.workload, number))
                results.append(step.results())
            self.known[family, number] = results[0], errors(results[1], results[0])
        return self.known[family, number]


def errors(got: Results, exact: Results) -> dict[str, float]:
    """Relative error of each result in the L2 norm; NaN if anything in it is, infinite if the shape is another."""
    return {
        name: math.inf
        if got[name].shape != right.shape
        else ((got[name].double() - right.double()).norm() / right.double().norm()).item()
        for name, right in exact.items()
    }


@contextlib.contextmanager
def _compiling(variant: Variant, limit: float) -> Iterator[None]:
    """torch.compile's settings for a variant, and an end to a compilation that takes too long."""
    if variant.compile is None:
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    start = time.monotonic()
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(limit, 0.001))
    try:
        with torch._functorch.config.patch(activation_memory_budget=variant.budget):
            yield
    except Exception as error:
        if time.monotonic() - start >= limit:
            raise TimeoutError(f"not compiled within the {limit:.0f} s that were left") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
