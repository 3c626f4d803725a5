"""Which gradients are wanted: frozen convolutions, frozen norms, the input's gradient alone, and their mixtures."""

from itertools import chain, combinations

import pytest
import torch

import densenet_fast
from densenet_fast.functional import dense_stage

from ..oracle import away_from_start, leaves_to, make_stage, rms_error, stage
from ..rows import some, thorough
from . import plans
from .conftest import DEVICE

BOTTLENECK = ("x", "norm1", "weight1", "norm2", "weight2", "norm", "weight")
PLAIN = ("x", "norm1", "weight1", "norm", "weight")


def subsets(names):
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


def leaves(steps, x):
    """(name, tensor) of all that may need a gradient; in every layer the names are the same."""
    layers, consumer = steps
    for step in (*layers, consumer):
        for name, value in step._asdict().items():
            if name.startswith("norm"):
                yield from ((name, value.gamma), (name, value.beta))
            elif name.startswith("weight"):
                yield name, value
    yield "x", x


def gradients(run, steps, x, wanted, cotangent):
    x = x.detach().clone().requires_grad_()
    chosen = [t.requires_grad_(name in wanted) for name, t in leaves(steps, x)]
    y = run(x, steps)
    return torch.autograd.grad(y, [t for t in chosen if t.requires_grad], cotangent.to(y.dtype))


@pytest.mark.parametrize(
    ("bottleneck", "names", "efficient", "running"),
    [
        thorough(4, BOTTLENECK, False, False),
        thorough(4, BOTTLENECK, True, False),
        (4, BOTTLENECK, True, True),
        (None, PLAIN, False, True),
    ],
    ids=["batch", "batch-efficient", "running-efficient", "plain-running"],
)
def test_gradients_are_those_of_autograd(bottleneck, names, efficient, running):
    """The input's alone, all but each, and the convolutions or norms alone; errors of all gradients together."""
    with DEVICE:
        frozen = range(5) if running else ()
        steps = make_stage(13, (7, 5), "transition", dtype=torch.float32, bottleneck=bottleneck, frozen=frozen)
        exact_steps, x = leaves_to(steps, torch.float64), torch.randn(2, 13, 6, 4)
        cotangent = torch.randn(2, 12, 3, 2)
        kinds = [{n for n in names if n.startswith(kind)} for kind in ("weight", "norm")]
        for wanted in ({"x"}, *({*names} - {n} for n in names), *kinds):
            exact = gradients(lambda x, s: stage(x, *s), exact_steps, x.double(), wanted, cotangent)
            stock = gradients(lambda x, s: stage(x, *s), steps, x, wanted, cotangent)
            ours = gradients(
                lambda x, s: dense_stage(x, *s, backend="triton", efficient=efficient).y, steps, x, wanted, cotangent
            )
            our, their = (
                torch.tensor([rms_error(g, e) for g, e in zip(found, exact, strict=True)]).norm()
                for found in (ours, stock)
            )
            assert our <= 2 * their + torch.finfo(torch.float32).eps, wanted


FROZEN = {
    "convolutions": lambda name: "conv" in name,
    "all": lambda name: True,
    "the trunk's first block": lambda name: "conv0" in name or "denseblock1" in name,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", FROZEN)
def test_model_with_frozen_parameters(frozen, training):
    """Of an image that needs a gradient: saliency, where all is frozen."""
    config = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 6, "num_classes": 3}
    with DEVICE:
        model = away_from_start(densenet_fast.DenseNet(**config, backend="triton")).train(training)
        plain = densenet_fast.DenseNet(**config, backend="plain").train(training)
        plain.load_state_dict(model.state_dict())
        plain.double()
        x, cotangent, found = torch.randn(2, 3, 8, 8), torch.randn(2, 3), []
        for m in (model, plain):
            for name, parameter in m.named_parameters():
                parameter.requires_grad_(not FROZEN[frozen](name))
            image = x.detach().to(m.classifier.weight.dtype).requires_grad_()
            m(image).backward(cotangent.to(image.dtype))
            found.append([image.grad, *(p.grad for p in m.parameters())])
    for ours, exact in zip(*found, strict=True):
        assert (ours is None) == (exact is None)
        # Not tight: pre-activations near zero fall either way. The stages above are held to stock's errors.
        assert ours is None or rms_error(ours, exact) < 0.1


@pytest.mark.parametrize("architecture", some(plans.DEVICES, always=[90]))
@pytest.mark.parametrize("running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize(("bottleneck", "names"), [(4, BOTTLENECK), (None, PLAIN)], ids=["bottleneck", "plain"])
def test_plans_of_every_combination(bottleneck, names, running, architecture):
    """A launch takes None for what is not wanted, never an empty tensor, which has no address; and weights that need
    no gradient cost no launch for one."""
    for frozen in subsets(names):
        net = plans.Net(2, 6, 16, 8, "transition", bottleneck, layers=2, frozen=frozen)
        for efficient in (False, True):
            forward, backward = plans.step(
                net, plans.DEVICES[architecture], plans.FORMS["bf16"], True, efficient, running
            )
            for launch in forward + backward:
                for name, value in launch.arguments.items():
                    assert not isinstance(value, torch.Tensor) or value.numel() > 0, (launch.kernel.__name__, name)
            assert bool(backward) == (len(frozen) < len(names))
            finished = [
                e for e in backward if {"weights", "dweight"} <= {n for n, v in e.arguments.items() if v is not None}
            ]
            of_layers = 0 if {*names[:-2]} <= {*frozen} else 2
            weights = sum(name not in frozen for name in ("weight1", "weight2")[: 2 if bottleneck else 1])
            assert len(finished) == of_layers * weights + (bool(backward) and "weight" not in frozen)
