"""No speed without a check: what is wrong, fails, or cannot run here is reported and not timed."""

import time
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from benchmarks import compare as module
from benchmarks.compare import Effort, Workload, compare
from benchmarks.runtimes import RUNTIMES
from benchmarks.subjects import blocks, net, short_block
from benchmarks.variants import BASELINE, BY_NAME, named

from ..rows import thorough

ONCE = Effort(rounds=1, seconds=0.0)


def work(subject, training=True, batch=2, dtype=torch.float32):
    return Workload(subject, batch, torch.device("cpu"), dtype, training)


@pytest.fixture
def variant(monkeypatch):
    """A variant "eager" whose module a function has changed."""

    def make(change):
        original = BY_NAME["eager"]
        changed = original._replace(build=lambda subject: change(original.build(subject)))
        monkeypatch.setitem(BY_NAME, "eager", changed)
        return changed

    return make


class Wrong(nn.Module):
    """A block whose output, or whose gradient alone, is off by one part in a thousand."""

    def __init__(self, inner, backward):
        super().__init__()
        self.inner, self.backward = inner, backward

    def forward(self, x):
        y = self.inner(x)
        return y + 1e-3 * (y - y.detach()) if self.backward else 1.001 * y

    def load_state_dict(self, *args):
        return self.inner.load_state_dict(*args)


@pytest.mark.parametrize("training", [True, thorough(False)])
@pytest.mark.parametrize(
    "subject",
    [net("bc-10-4", 8), short_block(9, 3, 5, 7), *map(thorough, blocks("bc-10-4", 8)[:1])],
    ids=lambda s: s.name,
)
def test_what_is_right_is_timed(subject, training):
    outcomes = compare(work(subject, training), named("torchvision*,eager*"), ONCE).outcomes
    for name in (BASELINE, "torchvision-nchw", "eager"):
        assert outcomes[name].error is None
        assert set(outcomes[name].seconds) == ({"forward", "forward+backward"} if training else {"inference"})
    assert outcomes["eager"].memory is None or outcomes["eager"].memory.live > 0


@pytest.mark.parametrize("name", RUNTIMES)
def test_other_runtimes_give_what_stock_gives(name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    outcome = compare(work(net("densenet121", 32), training=False), named(name), ONCE).outcomes[name]
    assert outcome.error is None
    assert outcome.seconds
    half = compare(work(net("densenet121", 32), training=False, dtype=torch.bfloat16), named(name), ONCE).outcomes
    assert half[name].missing == "it is set up for the CPU and float32"


@pytest.mark.parametrize(("backward", "wrong"), [(False, "output errs"), (True, "gradients errs")])
def test_what_is_wrong_is_not_timed(variant, backward, wrong):
    changed = variant(lambda inner: Wrong(inner, backward))
    outcome = compare(work(short_block(9, 3, 5, 7)), [BY_NAME[BASELINE], changed], ONCE).outcomes["eager"]
    assert wrong in outcome.error
    assert not outcome.seconds


def test_what_fails_is_reported_and_the_rest_timed(variant):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such kernel\nand a long tale")

        def load_state_dict(self, *args):
            pass

    outcomes = compare(work(short_block(9, 3, 5, 7)), [BY_NAME[BASELINE], variant(lambda _: Fails())], ONCE).outcomes
    assert outcomes["eager"].error == "RuntimeError: no such kernel"
    assert outcomes[BASELINE].seconds


def test_what_cannot_run_here_says_why():
    outcomes = compare(work(net("bc-10-4", 8)), named("all"), Effort(1, 0.0, compile_limit=0.001)).outcomes
    assert outcomes["eager-graph"].missing == "CUDA graphs need a GPU"
    assert "large images" in outcomes["resnet50"].missing
    assert "not compiled within" in outcomes["compile"].error


def test_gradients_that_a_rounded_relu_moves_get_another_batch():
    """On the first batch everyone but stock is off; on the second no one is: chance, not a fault."""
    subject = short_block(9, 3, 5, 7)
    reference = module.Reference(work(subject))
    step = module.build(BY_NAME["eager"], work(subject))
    known = [reference._on("stock", number) for number in range(2)]
    off = {name: value * 1.5 for name, value in known[0][0].items()}
    reference.known["stock", 0] = off, known[0][1]
    check = reference.check(BY_NAME["eager"], step)
    assert all(error <= limit for error, limit in check.values())
    assert torch.equal(step.x, module.images(reference.workload, 0).contiguous(memory_format=torch.channels_last))


def test_every_variant_has_the_same_weights_and_images():
    steps = [module.build(v, work(net("densenet121", 32))) for v in named("torchvision-nchw,timm,eager")]
    states = [step.module.state_dict() for step in steps]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)
    assert all(torch.equal(step.x, steps[0].x) for step in steps)


def test_a_compilation_that_takes_too_long_ends():
    changed = BY_NAME["compile"]._replace(build=lambda subject: time.sleep(30))
    start = time.monotonic()
    outcome = compare(work(short_block(9, 3, 5, 7)), [changed], Effort(1, 0.0, compile_limit=0.2)).outcomes["compile"]
    assert "not compiled within" in outcome.error
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", ["densenet122", "bc-101-12", "bc-4-12", "resnet50"])
def test_unknown_nets_and_peers_are_refused(name):
    with pytest.raises(ValueError, match="expected"):
        net(name, 32)
    with pytest.raises(ValueError, match="expected"):
        named(f"eager,{name}0")


def test_patterns_choose_peers():
    assert [v.name for v in named("compile")] == [BASELINE, "compile"]
    ours = {"eager", "eager-graph", "eager-efficient", "eager-efficient-graph"}
    assert {v.name for v in named("eager*")} == {BASELINE, *ours}
    assert not any(v.compile is not None for v in named("uncompiled"))
    assert len(named("all")) == len(BY_NAME)
