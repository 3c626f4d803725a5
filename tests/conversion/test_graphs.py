"""Compilers, exporters, counters of FLOPs and second derivatives of converted models, and of our own dilated ones."""

import copy

import onnxruntime
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

import densenet_fast
from densenet_fast.torchvision import DenseNet

from ..oracle import away_from_start, error
from ..rows import some
from . import copies
from .models import Case, Monai, Timm, Torchvision, torchxrayvision


def _dilated() -> nn.Module:
    """As segmentation has it: no pooling in front of the last block, whose 3x3 convolutions are dilated."""
    model = Torchvision(8, (2, 1), 16, num_classes=5)
    model.features.transition1.pool = nn.Identity()
    model.features.denseblock2.denselayer1.conv2.dilation = 2
    model.features.denseblock2.denselayer1.conv2.padding = 2
    return model


CASES = {  # of few layers: a compiler takes a second for each
    "torchvision": Case(lambda: Torchvision(8, (2, 1), 16, num_classes=5), size=(32, 32)),
    "torchvision, dilated": Case(_dilated, size=(32, 32)),
    "timm": Case(lambda: Timm(8, (2, 1), num_classes=5), size=(32, 32)),
    "monai": Case(lambda: Monai(2, 1, 5, 16, 8, (2, 1)), channels=1, size=(32, 32)),
    "monai, volumes": Case(lambda: Monai(3, 1, 5, 16, 8, (2, 1)), channels=1, size=(24, 24, 24)),
    "torchxrayvision": Case(
        lambda: torchxrayvision.models.DenseNet(8, (2, 1), 16, in_channels=1), channels=1, size=(32, 32)
    ),
    "a copy": Case(copies.net, size=(16, 16)),
    "ours, dilated": Case(lambda: DenseNet(8, (2, 1), 16, num_classes=5, output_stride=4), size=(32, 32)),
}

DIFFERENT = ["timm", "monai, volumes", "ours, dilated"]  # one of each kind


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def trunk(model: nn.Module) -> nn.Module:
    return model.features if hasattr(model, "features") else model[0]


def pair(case):
    """The same net twice: with its library's layers, and converted; away from weights at which gradients cancel."""
    torch.manual_seed(0)
    stock = away_from_start(case.build().double())
    if hasattr(trunk(stock), "norm0"):
        trunk(stock).norm0.bias.data.sub_(1.5)  # else all its maxima are positive
    ours = copy.deepcopy(stock)
    assert not densenet_fast.convert(ours).left
    return stock.set_backend("plain") if isinstance(stock, DenseNet) else stock, ours


def step(model, call, x):
    model.zero_grad()
    y = call(x)
    y.square().sum().backward()
    return [y, *[p.grad for p in model.parameters()], *model.buffers()]


@pytest.mark.parametrize("name", some(CASES, always=["timm", "monai, volumes"]))
def test_compiled_as_one_graph(name):
    """Training steps of a model: bitwise what they are without a compiler; batches of any size take one graph more."""
    torch.compiler.reset()
    counters.clear()
    case = CASES[name]
    _, model = pair(case)
    compiled = copy.deepcopy(model)
    call = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    sizes = (3, 4, 2) if name == "timm" else (3,)
    for n in sizes:
        x = torch.randn(n, case.channels, *case.size, dtype=torch.float64)
        assert all(map(torch.equal, step(compiled, call, x), step(model, model, x))), n
    assert counters["stats"]["unique_graphs"] == min(2, len(sizes))


@pytest.mark.parametrize(
    ("name", "strict"),
    some(
        [*((name, False) for name in CASES), *((name, True) for name in DIFFERENT)],
        always=[*((name, False) for name in DIFFERENT), ("timm", True)],
    ),
)
def test_export_records_the_librarys_layers(name, strict, recwarn):
    """For batches of any size, with PyTorch's operators alone."""
    stock, ours = pair(CASES[name])
    x = CASES[name].images()
    shapes = ({0: torch.export.Dim("n", min=2, max=64)},)
    exported = torch.export.export(ours.eval(), (x,), strict=strict, dynamic_shapes=shapes)
    assert not any("densenet_fast" in str(node.target) for node in exported.graph.nodes)
    more = torch.cat([x, x.flip(-1)])
    assert error(exported.module()(more), stock.eval()(more)) < 1e-10
    assert not [w for w in recwarn if "plain layers" in str(w.message)]


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
@pytest.mark.parametrize("name", some(DIFFERENT, always=["timm"]))
def test_onnx(name, tmp_path):
    stock, ours = pair(CASES[name])
    x = CASES[name].images()
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    file = str(tmp_path / "net.onnx")
    torch.onnx.export(ours.eval().float(), (x.float(),), file, dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for images in (x, torch.cat([x, x])):
        (got,) = session.run(None, {session.get_inputs()[0].name: images.float().numpy()})
        assert error(torch.from_numpy(got), stock.eval()(images)) < 1e-5


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_flops_are_those_of_the_librarys_layers(case, recwarn):
    found, x = [], case.images()
    for model in pair(case):
        y = []
        forward = counted(lambda model=model, y=y: y.append(model(x)))
        found.append((forward, counted(lambda y=y: y[0].sum().backward())))
    assert found[0] == found[1]
    assert not [w for w in recwarn if "plain layers" in str(w.message)]


def test_gradients_of_gradients_and_batches_of_them(case, recwarn):
    found, x = [], case.images()[:2]
    for model in pair(case):
        leaf, parameters = x.clone().requires_grad_(), list(trunk(model).parameters())
        y = model(leaf)
        cotangents = torch.linspace(-1, 1, 3 * y.numel(), dtype=y.dtype).view(3, *y.shape)
        batch = torch.autograd.grad(y, parameters, cotangents, is_grads_batched=True, retain_graph=True)
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), [leaf, *parameters], allow_unused=True)
        jacobian = torch.autograd.functional.jacobian(model.eval(), x, vectorize=True)
        found.append([*batch, first, *second, jacobian])
    for ours, stock in zip(*reversed(found), strict=True):
        assert (ours is None) == (stock is None)
        assert ours is None or error(ours, stock) < 1e-9
    assert not [w for w in recwarn if "plain layers" in str(w.message)]
