"""What code around a model sees, as torchvision's model shows it: memory formats, values, tensors it may change."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

from densenet_fast.stage.buffer import memory_format
from densenet_fast.torchvision import DenseNet as Ours

from .oracle import error
from .pairs import BACKENDS, CONFIG, LAYOUTS, all_norms, image, pair

WATCHED = (
    *("", "features", "features.conv0", "features.norm0", "features.relu0", "features.pool0", "features.denseblock1"),
    *("features.denseblock1.denselayer2", "features.denseblock1.denselayer1.norm1", "features.transition1"),
    *("features.transition1.conv", "features.denseblock2", "features.norm5"),
)


def tensors(value):
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else [value]


PARTS = "", "features", "features.denseblock1", "features.denseblock1.denselayer1", "features.transition1"


def test_inputs_have_their_names_in_torchvision():
    """Which keywords, torch.export's shapes and the inputs of ONNX graphs go by."""
    for name in PARTS:
        ours, theirs = (inspect.signature(model.get_submodule(name).forward) for model in pair())
        assert [*ours.parameters] == [*theirs.parameters], name


@pytest.mark.parametrize("name", [*PARTS, "stem"])
def test_a_part_is_traced_as_torchvisions(name):
    """By torch.fx, alone: the same nodes, the same results."""
    theirs, ours = (
        model.features[:4] if name == "stem" else model.get_submodule(name) for model in (m.eval() for m in pair())
    )
    expected, found = torch.fx.symbolic_trace(theirs), torch.fx.symbolic_trace(ours)
    assert [(n.op, n.target) for n in found.graph.nodes] == [(n.op, n.target) for n in expected.graph.nodes]
    channels = next(m for m in theirs.modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.randn(2, channels, 40, 33, dtype=torch.float64)
    x = [x] if "denselayer" in name else x  # what neither knows for a tensor
    assert error(found(x), expected(x)) < 1e-10


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hooks_see_what_they_see_in_torchvision(layout, weights):
    """Inputs and outputs of every kind of module: strides at the time of the call, values after it."""
    x = LAYOUTS[layout](image())
    for name in WATCHED:
        seen = []
        for model in pair():
            model.to(memory_format=weights)
            calls = []

            def look(_, inputs, output, calls=calls):
                calls.extend((t, t.stride()) for t in tensors([inputs, output]))

            model.get_submodule(name).register_forward_hook(look)
            y = model(x)
            seen.append([*calls, (y, y.stride())])
        for (theirs, expected), (ours, got) in zip(*seen, strict=True):
            assert got == expected, name
            assert error(ours.detach(), theirs.detach()) < 1e-10, name


class Recorder(nn.GroupNorm):
    """A norm that is not ours, and notes the strides it is given."""

    def forward(self, x):
        self.seen = x.stride()
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name",
    [
        "features.norm0",
        "features.denseblock1.denselayer1.norm1",
        "features.denseblock1.denselayer2.norm2",
        "features.transition1.norm",
        "features.norm5",
    ],
)
def test_replaced_norms_get_the_memory_format_they_get_in_torchvision(name, layout):
    seen = []
    for model in pair():
        old = model.get_submodule(name)
        model.set_submodule(name, Recorder(1, old.num_features).double())
        model(LAYOUTS[layout](image()))
        seen.append(model.get_submodule(name).seen)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_have_the_memory_format_they_have_in_torchvision(layout, create_graph):
    """Of the image, and of tensors between modules called one by one."""
    seen = []
    for model in pair():
        x = LAYOUTS[layout](image()).requires_grad_()
        strides = [torch.autograd.grad(model(x).sum(), x, create_graph=create_graph)[0].stride()]
        tensors = [x]
        for module in model.features:
            tensors.append(module(tensors[-1]))
        cotangent = torch.randn_like(tensors[-1])
        gradients = torch.autograd.grad(tensors[-1], tensors[:-1], cotangent, create_graph=create_graph)
        seen.append(strides + [g.stride() for g in gradients])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_parameters_have_their_memory_format_in_torchvision(layout, weights):
    """Of orders 1 to 3; the last one, and of the first a second time, without a graph. For channels_last images stock
    weights in NCHW get gradients in channels_last, which PyTorch's fused optimizers misread: ours do with a graph."""
    x, found = LAYOUTS[layout](image()), []
    for model in pair():
        model.to(memory_format=weights)
        parameters, loss, strides = list(model.parameters()), model(x).square().sum(), []
        once = torch.autograd.grad(loss, parameters, retain_graph=True)
        for order in range(3):
            gradients = torch.autograd.grad(loss, parameters, create_graph=order < 2)
            strides.append([gradient.stride() for gradient in gradients])
            loss = sum((gradient * gradient.detach().cos()).sum() for gradient in gradients)
        found.append((strides, [gradient.stride() for gradient in once], [p.stride() for p in parameters]))
    (theirs, once_theirs, _), (ours, once_ours, own) = found
    assert ours == theirs
    assert once_ours == (own if weights == torch.contiguous_format else once_theirs)


@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "twice"])
def test_hooks_on_parameters_are_called_once_with_what_can_be_seen_as_a_vector(create_graph):
    """As whoever compresses, scales or collects gradients sees them."""
    x, found = image(), []
    for model in pair():
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: 2 * gradient)
        loss = model(x).square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=create_graph)
        found.append([gradient.view(-1) for gradient in gradients])
    theirs, ours = found
    assert max(map(error, ours, theirs)) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("efficient", [False, True])
def test_statistics_written_before_backward_change_no_gradient(backend, efficient):
    """One backward of a forward in eval mode and of another in training, which updates what the first has read."""
    model = Ours(**CONFIG, backend=backend, memory_efficient=efficient)
    apart = copy.deepcopy(model)
    x = image(dtype=torch.float32)
    first = model.eval()(x).square().sum()
    second = model.train()(2 * x).square().sum()
    (first + second).backward()
    apart.eval()(x).square().sum().backward()
    apart.train()(2 * x).square().sum().backward()
    for got, expected in zip(model.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_layers_do_not_mind_a_fused_step_before_their_backward(backend, momentum):
    """PyTorch's BatchNorm saves its running statistics, and its own updates give them no new version."""
    model = Ours(**CONFIG)
    for norm in all_norms(model):
        norm.momentum = momentum
    x = image(dtype=torch.float32)
    plain = model.set_backend("plain")(x).square().sum()
    (plain + model.set_backend(backend)(x).square().sum()).backward()


@pytest.mark.parametrize("name", ["features.denseblock1", "features.transition1", "features.denseblock2"])
def test_hooks_may_change_outputs_in_place(name):
    results, x = [], image()
    for model in pair(growth_rate=3, num_init_features=5):
        model.get_submodule(name).register_forward_hook(lambda _, __, output: output.mul_(2).add_(0.1))
        model(x).square().sum().backward()
        model.features[:5](x).relu_().sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


def test_saved_tensors_may_be_laid_out_anew():
    """As offloading through other libraries does: strides are lost on the way."""
    results, x = [], image()
    for model in pair(growth_rate=3):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.detach().clone(memory_format=torch.contiguous_format), lambda t: t
        ):
            y = model(x)
        y.square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


def test_first_calls_come_from_several_threads():
    """In a process of its own: operators are registered once, whoever comes first."""
    program = """
import sys, threading, torch
from benchmarks.memory import measure
from densenet_fast import DenseNet
sys.setswitchinterval(1e-6)
failures, start = [], threading.Barrier(8)


def call(backend):
    model, x = DenseNet(4, (2,), num_init_features=8, backend=backend), torch.randn(1, 3, 16, 16)
    start.wait()
    try:
        model(x).sum().backward()
    except Exception as error:
        failures.append(repr(error))
threads = [threading.Thread(target=call, args=[("eager", "auto")[i % 2]]) for i in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
sys.exit("; ".join(failures) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_from_several_threads_is_that_of_one():
    """Fifty steps in each of eight threads at once, the first calls of their process: bitwise what one thread gives."""
    program = """
import copy, sys, threading, torch
from densenet_fast import DenseNet
sys.setswitchinterval(1e-5)
start = threading.Barrier(8)
models = [DenseNet(4, (2, 2), num_init_features=8, num_classes=3)]
models += [copy.deepcopy(models[0]) for _ in range(8)]
x, labels = torch.randn(4, 3, 16, 16), torch.randint(3, (4,))


def train(model, at_once=True):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    if at_once:
        start.wait()
    for _ in range(50):
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


threads = [threading.Thread(target=train, args=[model]) for model in models[1:]]
[t.start() for t in threads], [t.join() for t in threads]
train(models[0], at_once=False)
expected = models[0].state_dict()
sys.exit(not all(torch.equal(v, expected[k]) for model in models[1:] for k, v in model.state_dict().items()))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_memory_formats_are_pytorchs():
    """Of any strides: those of a convolution's output, and of an elementwise operation's on dense tensors."""
    shapes = [
        (2, 3, 4, 5),
        (1, 3, 4, 5),
        (2, 1, 4, 5),
        (2, 3, 1, 1),
        (2, 1, 1, 1),
        (1, 1, 1, 4),
        (1, 1, 4, 1),
        (3, 2, 1, 4),
    ]
    for shape in shapes:
        for layout in (torch.contiguous_format, torch.channels_last):
            whole = torch.randn(shape).contiguous(memory_format=layout).clone(memory_format=layout)
            wide = torch.randn(shape[0], 2 * shape[1], *shape[2:]).contiguous(memory_format=layout)
            for x in (whole, wide[:, : shape[1]], wide[:, ::2], whole.flip(0).transpose(2, 3), whole[..., :1]):
                # An average over one pixel, which gives its output the memory format that PyTorch takes x's for.
                expected = nn.functional.avg_pool2d(x, 1).stride()
                assert torch.empty(x.shape, memory_format=memory_format(x)).stride() == expected, (x.shape, x.stride())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_under_autocast_are_torchvisions(dtype):
    """Of every module called by hand on float32, and of a net whose first convolution gives float32."""
    theirs, ours = (model.float() for model in pair())
    exact, x = copy.deepcopy(theirs).double(), image(dtype=torch.float32)

    class InFloat32(nn.Conv2d):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x)

    for model in (theirs, ours):
        conv = model.features.conv0
        model.features.conv0 = InFloat32(3, conv.out_channels, 7, 2, 3, bias=False)
        model.features.conv0.weight = conv.weight
    exact.features.conv0 = copy.deepcopy(theirs.features.conv0).double()
    children = {"the stem": slice(0, 4), "a block": slice(4, 5), "a transition": slice(5, 6), "features": slice(0, 8)}
    for name, part in children.items():
        results = []
        for model in (exact, theirs, ours):
            y = model.features[: part.start](x.to(model.classifier.weight.dtype)).detach()
            with torch.autocast("cpu", dtype=dtype, enabled=model is not exact):
                results.append(model.features[part](y))
        expected, their, our = results
        assert our.dtype == their.dtype, name
        assert error(our.double(), expected) <= 2 * error(their.double(), expected) + torch.finfo(dtype).eps, name


def test_hooks_see_running_statistics_as_far_as_the_forward_has_come():
    seen = []
    for model in pair():
        states, norms = [], all_norms(model)
        for name in ("denseblock1", "transition1", "norm5"):
            model.features.get_submodule(name).register_forward_hook(
                lambda *_, states=states, norms=norms: states.append([int(norm.num_batches_tracked) for norm in norms])
            )
        model(image())
        seen.append(states)
    assert seen[0] == seen[1]


def test_another_model_may_run_in_a_hook():
    """A teacher in training and then in eval mode, which reads what its own training step has written."""
    results, x = [], image()
    for student, teacher in zip(pair(), pair(growth_rate=3), strict=True):

        def hook(*_, teacher=teacher, results=results):
            teacher.train()(x)
            results.append(teacher.eval()(x))

        student.features.denseblock1.register_forward_hook(hook)
        results.append(student(x))
        results += teacher.buffers()
    half = len(results) // 2
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(results[:half], results[half:], strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which Dynamo reads
def test_a_whole_step_may_be_compiled():
    """Backward inside what torch.compile traces."""
    results, x = [], image()
    for model in pair():

        def step(model=model):
            loss = model(x).square().sum()
            loss.backward()
            return loss

        loss = torch.compile(step, backend="eager")()
        results.append([loss, *[p.grad for p in model.parameters()]])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))
