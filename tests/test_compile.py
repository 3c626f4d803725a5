"""torch.compile: one graph, in which a stage is one operator, that does what the net does by itself."""

import copy
import sys
from itertools import product

import pytest
import torch
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._guards import TracingContext
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from torch._subclasses import FakeTensorMode

import densenet_fast
from benchmarks.memory import measure
from densenet_fast.modules.views import LayerView
from densenet_fast.stage import LayerSpec

from .contract.nets import MODES, freeze_every_second, untracked
from .oracle import error
from .pairs import image, pair
from .rows import some, thorough
from .test_changes import CHANGES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GRAPHS = "auto", "reduce-overhead"
LARGE, SMALL = {"small_inputs": False}, {"small_inputs": True}


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    counters.clear()


def net(**config):
    torch.manual_seed(0)
    return densenet_fast.DenseNet(**({"growth_rate": 4, "block_config": (2, 1), "num_init_features": 6} | config))


class Recorder:
    """A compiler that keeps the graphs that Dynamo gives it, and runs them as they are."""

    def __init__(self):
        self.called = []

    def __call__(self, graph, _):
        self.called.append([str(node.target) for node in graph.graph.nodes if node.op != "placeholder"])
        return graph


def step(call, model, x, **options):
    """Output, gradients, buffers after it."""
    torch.manual_seed(1)
    model.zero_grad()
    x = x.detach().clone().requires_grad_(x.requires_grad)
    with torch.autocast("cpu", **({"enabled": False} | options)):
        y = call(x)
    if y.requires_grad:
        y.square().sum().backward()
    found = [y.detach(), x.grad, *[p.grad for p in model.parameters()], *[b.clone() for b in model.buffers()]]
    return [value for value in found if value is not None]


def check(model, x, backend="aot_eager", tolerance=0.0, steps=2, mode=None, **options):
    """A few steps of `model`, and of a compiled copy, which are one graph."""
    counters.clear()
    compiled = copy.deepcopy(model)
    call = torch.compile(compiled, backend=backend, mode=mode, fullgraph=True)
    for _ in range(steps):
        found, expected = step(call, compiled, x, **options), step(model, model, x, **options)
        assert len(found) == len(expected)
        for got, right in zip(found, expected, strict=True):
            assert got.dtype == right.dtype
            assert error(got, right) <= tolerance
    assert counters["stats"]["unique_graphs"] == 1
    return call


@pytest.mark.parametrize(
    "config", [SMALL, thorough(LARGE), LARGE | {"efficient": True}, thorough({"bn_size": None})], ids=str
)
@pytest.mark.parametrize(("training", "backend"), [(True, "auto"), thorough(False, "eager")])
def test_a_step_is_that_of_the_net_itself(training, backend, config):
    """To the compiler a backend is a name: which of them it is does not matter to its work."""
    model = net(backend=backend, **config).train(training)
    check(model, torch.randn(4, 3, 33, 40))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which the compiler uses
@pytest.mark.parametrize(("backend", "mode"), [("eager", None), GRAPHS if DEVICE.type == "cuda" else thorough(*GRAPHS)])
def test_inductor(backend, mode):
    """From CUDA graphs, where there is a GPU: one step warms up, one is captured, the others are replayed."""
    x = torch.randn(4, 3, 32, 32, device=DEVICE)
    model = net(backend=backend, block_config=(1, 1), small_inputs=False, drop_rate=0.2).to(DEVICE)
    check(model, x, "inductor", 1e-5, steps=2 if mode is None else 4, mode=mode)
    assert DEVICE.type == "cpu" or not counters["inductor"]["cudagraph_skips"]
    with torch.no_grad():
        check(model.eval(), x, "inductor", 1e-5)


class Captured:
    """A compiler that runs graphs as they are, and asks of each what inductor asks before it captures one."""

    def __init__(self):
        self.devices, self.why_not = set(), []

    def __call__(self, graph, inputs):
        return aot_module_simplified(graph, inputs, fw_compiler=self.look, bw_compiler=self.look)

    def look(self, graph, _):
        inputs = TracingContext.get().fw_metadata
        moving = {*inputs.mutated_inp_runtime_indices} - {*inputs.static_input_indices}
        unsafe = get_first_incompatible_cudagraph_node(graph)
        self.why_not += [f"changes inputs {moving}"] * bool(moving) + [f"has {unsafe}"] * (unsafe is not None)
        values = [node.meta.get("val") for node in graph.graph.nodes]
        self.devices |= {value.device.type for value in values if isinstance(value, torch.Tensor)}
        return make_boxed_func(graph.forward)


@pytest.mark.skipif(torch.__version__ < (2, 11), reason="its Dynamo takes no inputs of another's fake mode")
@pytest.mark.parametrize("config", [SMALL, LARGE | {"efficient": True}], ids=str)
def test_its_graphs_may_be_captured(config):
    """On a fake GPU, which does the forward pass alone, no tensor is on the CPU; on the CPU there is the whole step."""
    step, forward = Captured(), Captured()
    x = torch.randn(4, 3, 33, 40)
    torch.compile(net(**config, drop_rate=0.2), backend=step, fullgraph=True)(x).sum().backward()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), torch.no_grad():
        x = torch.randn(4, 3, 33, 40)
        torch.compile(net(**config, drop_rate=0.2), backend=forward, fullgraph=True)(x)
    assert forward.devices == {"cuda"}
    assert not step.why_not + forward.why_not


@pytest.mark.parametrize("change", some(MODES, always=[freeze_every_second, untracked]))
def test_modes_of_norms_and_weights(change):
    model = net(small_inputs=False)
    change(model)
    check(model, torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize(("dims", "backend"), [thorough(1, "eager"), (3, "auto")])
def test_volumes_and_signals(dims, backend, recwarn):
    model = net(block_config=(1, 1), small_inputs=False, spatial_dims=dims, backend=backend)
    x = torch.randn(3, 3, *[16] * dims)
    check(model, x)
    x = torch.randn(3, 3, *[32] * dims)
    kept, compiled = (measure(model, x, call=call) for call in (model, torch.compile(model, backend="aot_eager")))
    assert compiled.live <= 1.01 * kept.live
    assert not [w for w in recwarn if "plain layers" in str(w.message)]


def test_dropout_is_the_same_under_a_seed():
    model = net(drop_rate=0.3)
    check(model, torch.randn(4, 3, 16, 16))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_draws_with_equal_arguments_are_not_one():
    """Two samples of a net (Monte Carlo dropout), whose blocks have as many layers each, in one graph, in which the
    compiler makes one expression of two that are equal."""
    model = net(block_config=(1, 1), drop_rate=0.5)
    samples = torch.compile(lambda x: (model(x), model(x)), fullgraph=True)
    assert error(*samples(torch.randn(4, 3, 16, 16))) > 0.1


@pytest.mark.parametrize("needs", [True, thorough(False)])
def test_autocast(needs):
    model = net(small_inputs=False)
    check(model, torch.randn(4, 3, 32, 32).requires_grad_(needs), enabled=True, dtype=torch.bfloat16, tolerance=0.02)


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize(
    "change",
    [
        thorough("a module replaced"),
        "a forward on an instance",
        thorough("a class of which more is called"),
        thorough("a class that computes its weight"),
        thorough("a method that a forward calls"),
        "a forward hook",
        thorough("the mode of a transition's norm"),
        "eps",
        thorough("a norm's statistics taken away"),
        thorough("a bias taken away"),
        thorough("dropout"),
    ],
)
@torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)  # else hooks that come later are never called, as in stock
def test_a_change_between_two_steps_is_compiled_anew(change):
    model = net(small_inputs=False).double()
    compiled, x = copy.deepcopy(model), image()
    call = torch.compile(compiled, backend="eager", fullgraph=True)
    for m, c in ((model, model), (compiled, call)):
        step(c, m, x)
        CHANGES[change](m)
    for got, right in zip(step(call, compiled, x), step(model, model, x), strict=True):
        assert error(got, right) < 1e-10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("config", "compiler"),
    some(
        product([SMALL, LARGE | {"efficient": True}], ["aot_eager", "inductor"]),
        always=[(SMALL, "inductor"), (LARGE | {"efficient": True}, "aot_eager")],
    ),
    ids=str,
)
def test_the_bytes_kept_are_those_of_the_net_itself(config, compiler):
    model, x = net(**config, growth_rate=8), torch.randn(4, 3, 64, 64)
    call = check(model, x, compiler, 1e-5)
    kept, compiled = measure(model, x), measure(model, x, call=call)
    assert compiled.live <= 1.01 * kept.live
    assert compiled.peak <= 1.01 * kept.peak


def test_frozen_layers_keep_no_bottlenecks():
    model, x = net(**LARGE, growth_rate=8), torch.randn(4, 3, 64, 64)
    model.freeze("denseblock1")
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    call(x).sum().backward()
    assert measure(model, x, call=call).live <= 1.01 * measure(model, x).live


def test_a_batch_of_another_size_is_compiled_once():
    model = net(small_inputs=False)
    compiled = copy.deepcopy(model)
    call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for n in range(4, 9):
        x = torch.randn(n, 3, 32, 32)
        for got, right in zip(step(call, compiled, x), step(model, model, x), strict=True):
            assert error(got, right) <= 1e-6
    assert counters["stats"]["unique_graphs"] == 2  # of one size, then of any


def test_a_graph_has_one_operator_for_each_stage(recwarn):
    model, recorder = net(small_inputs=False), Recorder()
    torch.compile(model, backend=recorder, fullgraph=True)(torch.randn(4, 3, 32, 32)).sum().backward()
    (called,) = recorder.called
    assert sum("densenet_fast.stage" in name for name in called) == 3
    assert not any("batch_norm" in name for name in called)
    assert not recwarn.list


def test_named_tuples_have_no_properties():
    """Of which PyTorch 2.10's Dynamo knows nothing."""
    names = [name for name in sys.modules if name.startswith(("densenet_fast.modules", "densenet_fast.stage"))]
    values = [value for name in names for value in vars(sys.modules[name]).values()]
    found = {cls for cls in values if hasattr(cls, "_fields") and cls.__module__ in names}
    assert {LayerView, LayerSpec} < found
    assert not [cls for cls in found if any(isinstance(value, property) for value in vars(cls).values())]


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("training", [thorough(False), True])
def test_an_unbacked_batch(training):
    """In a full graph the compiler refuses torchvision's layers, whose norms ask whether a batch is empty, and leaves
    them out of other graphs; so it does with ours."""
    theirs, ours = (model.train(training) for model in pair())
    for model in (theirs, ours):
        with pytest.raises(torch._dynamo.exc.UserError, match="data-dependent"):
            torch.compile(model, backend="eager", fullgraph=True)(unbacked(3))
        torch.compiler.reset()
    compiled = copy.deepcopy(ours)
    call = torch.compile(compiled, backend="eager")
    for n in (3, 0):
        x = unbacked(n)
        for got, right in zip(step(call, compiled, x), step(theirs, theirs, x), strict=True):
            assert got.shape == right.shape
            assert right.numel() == 0 or error(got, right) < 1e-9


def unbacked(n):
    x = image(n)
    torch._dynamo.decorators.mark_unbacked(x, 0)
    return x


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of the exporter's and the compiler's own
def test_ahead_of_time(tmp_path):
    """AOTInductor's library of an exported net, which has PyTorch's operators alone, for batches of any size."""
    model = net(block_config=(1,)).eval()
    exported = torch.export.export(
        model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},)
    )
    assert not any("densenet_fast" in str(node.target) for node in exported.graph.nodes)
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    package = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(tmp_path / "net.pt2"), inductor_configs=quick
    )
    loaded = torch._inductor.aoti_load_package(package)
    with torch.no_grad():
        for n in (2, 5):
            x = torch.randn(n, 3, 8, 8)
            assert error(loaded(x), model(x)) < 1e-5


@pytest.mark.filterwarnings("ignore:.*plain layers", "ignore:The .grad attribute")  # which Dynamo looks at
@pytest.mark.parametrize("name", ["transition1", "denseblock1.denselayer1.conv1", "norm_final"])
def test_hooks_may_break_the_graph(name):
    """For instance one that prints. What is around the trunk is compiled then."""
    model = net().double()

    def double(module, inputs, output):
        torch._dynamo.graph_break()
        return 2 * output

    model.features.get_submodule(name).register_forward_hook(double)
    compiled = copy.deepcopy(model)
    call = torch.compile(compiled, backend="aot_eager")
    for n in (3, 2):
        x = image(n)
        assert all(map(torch.equal, step(call, compiled, x), step(model, model, x)))


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_of_torch_func(transform):
    model, x = net().double().eval(), image()
    stock = copy.deepcopy(model).set_backend("plain")

    def run(model):
        def loss(parameters):
            return torch.func.functional_call(model, parameters, x).square().sum()

        if transform == "grad":
            return torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})
        return {"": torch.vmap(lambda image: model(image[None])[0])(x)}

    ours, theirs = torch.compile(lambda: run(model), backend="aot_eager", fullgraph=True)(), run(stock)
    for name in theirs:
        assert error(ours[name], theirs[name]) < 1e-10, name
