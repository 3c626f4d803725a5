"""convert() against every library as published: numbers, identity of what users hold, the libraries' own methods."""

import copy
import inspect
import io
import warnings
from collections import OrderedDict
from itertools import product

import pytest
import torch
from timm.models._features import FeatureListNet
from torch import nn
from torch.nn.utils import prune

import densenet_fast
from benchmarks.memory import measure
from densenet_fast.conversion import Part
from densenet_fast.modules import Fusable, Trunk

from ..rows import some, thorough
from . import copies
from .models import BLOCKS, MODELS, Monai, Timm, Torchvision, outputs, relative, smp, step, torchxrayvision

MODES = {"train": lambda model: model.train(), "eval": lambda model: model.eval()}


@pytest.fixture(params=MODELS)
def case(request):
    return MODELS[request.param]


ALWAYS = {name for name in MODELS if "smp, FPN" not in name and "wide" not in name and "more" not in name}


@pytest.mark.parametrize(
    ("case", "mode"),
    some(
        product(MODELS, MODES),
        always=lambda row: row[0] in ALWAYS and (row[1] == "train" or row[0] in ("torchvision", "monai, volumes")),
    ),
    indirect=["case"],
)
def test_outputs_gradients_and_steps_are_the_librarys(case, mode, recwarn):
    stock = MODES[mode](case.build().double())
    ours = copy.deepcopy(stock)
    report = densenet_fast.convert(ours, on_unsupported="leave" if case.left else "raise")
    assert len(report.converted) == case.parts, report
    assert tuple(part.name for part in report.left) == case.left
    x = case.images()
    with torch.no_grad():  # before any statistics have moved
        assert relative(outputs(copy.deepcopy(ours), x), outputs(copy.deepcopy(stock), x)) <= 1e-10
    optimizers = [torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9) for model in (ours, stock)]
    for i in range(3):
        (y, dy), (exact, dexact) = (step(model, x) for model in (ours, stock))
        if i == 0:
            assert relative(y, exact) <= 1e-10
            assert relative(dy, dexact) <= 1e-9
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert relative(*[[torch.cat([p.flatten() for p in m.parameters()])] for m in (ours, stock)]) <= 1e-8
    if not case.moves_twice:
        moved = [
            [b for name, b in model.named_buffers() if b.is_floating_point() and "op_threshs" not in name]
            for model in (ours, stock)
        ]
        assert relative(*moved) <= 1e-8
    assert not [w for w in recwarn if "plain layers" in str(w.message)]


SHALLOW = [name for name in MODELS if not name.startswith("smp") and name != "timm, features only"]


@pytest.mark.parametrize("case", SHALLOW, indirect=True)
def test_native_kernels_are_as_exact_as_the_librarys_layers(case):
    """In nets of few layers. Behind 121 layers, on 2x2 images, rounding has grown to a percent in both, and which of
    the two is nearer is chance."""
    stock = case.build().train()
    ours, exact = copy.deepcopy(stock), copy.deepcopy(stock).double()
    densenet_fast.convert(ours, backend="native")
    x = case.images()
    (y, dy), (z, dz), (y64, dy64) = step(ours, x.float()), step(stock, x.float()), step(exact, x)
    assert relative(y, y64) <= 2 * relative(z, y64)
    assert relative(dy, dy64) <= 2 * relative(dz, dy64)


def test_everything_that_users_hold_stays(case):
    """Module, parameter and buffer objects, keys and their order, hooks, mode, dtype; the state of an optimizer."""
    model = case.build().double().eval()
    blocks = [m for n, m in model.named_modules() if n.rpartition(".")[2].startswith(("denseblock", "features_denseb"))]
    seen = []
    handles = [block.register_forward_hook(lambda m, args, y: seen.append(m)) for block in blocks]
    held = list(model.modules()), list(model.parameters()), list(model.buffers())
    keys, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    densenet_fast.convert(model, on_unsupported="leave" if case.left else "raise")
    after = list(model.modules()), list(model.parameters()), list(model.buffers())
    for before, now in zip(held, after, strict=True):
        assert len(before) == len(now)
        assert all(a is b for a, b in zip(before, now, strict=True))
    assert keys == list(model.state_dict())
    assert names == [name for name, _ in model.named_modules()]
    assert not any(m.training for m in model.modules())
    with torch.no_grad():
        model(case.images())
    assert seen == blocks
    for handle in handles:
        handle.remove()


def test_blocks_keep_the_name_of_their_input(case):
    """In calls, in graphs of torch.fx, and where a compiler calls a block."""
    model = case.build().double().eval()
    blocks = [m for n, m in model.named_modules() if n.rpartition(".")[2].startswith(("denseblock", "features_denseb"))]
    signatures = [inspect.signature(block.forward) for block in blocks]
    densenet_fast.convert(model)
    assert [inspect.signature(block.forward) for block in blocks] == signatures
    block, (name,) = blocks[0], signatures[0].parameters
    conv = next(m for m in block.modules() if hasattr(m, "in_channels"))
    x = torch.randn(2, conv.in_channels, *[8] * len(case.size), dtype=torch.float64)
    torch.compiler.reset()  # all libraries' blocks have one code, for which it counts its graphs
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    for wrong in ({}, {"other": x}, {name: x, "other": x}):
        with pytest.raises(TypeError, match=r"forward\(\)"):
            block(**wrong)
    with torch.no_grad():
        expected = type(block).stock.forward(block, x)
        assert relative([block(**{name: x}), compiled(**{name: x})], [expected] * 2) <= 1e-10
    if not case.moves_twice:  # the copy that recomputes asks tensors, which torch.fx cannot trace
        assert torch.fx.Tracer().trace(block).find_nodes(op="placeholder")[0].target == name


def test_copies_and_pickled_models_stay_converted(case):
    model = case.build().eval()
    report = densenet_fast.convert(model)
    x = case.images(torch.float32)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.no_grad():
        expected = outputs(model, x)
        for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert sum(isinstance(m, Fusable) for m in other.modules()) >= case.parts - 1
            assert densenet_fast.convert(other) == report
            assert all(map(torch.equal, outputs(other, x), expected))


def test_converting_twice_changes_nothing_and_reverting_undoes_it(case):
    model = case.build().double().eval()
    x = case.images()
    stock, state = [type(m) for m in model.modules()], [set(m.__dict__) for m in model.modules()]
    with torch.no_grad():
        expected = outputs(model, x)
        report = densenet_fast.convert(model, efficient=True, backend="eager")
        converted = [type(m) for m in model.modules()]
        assert densenet_fast.convert(model) == report
        assert [type(m) for m in model.modules()] == converted
        assert {m.backend for m in model.modules() if isinstance(m, Fusable | Trunk)} == {"eager"}
        model(x)
        densenet_fast.revert(model)
        assert [type(m) for m in model.modules()] == stock
        assert [set(m.__dict__) for m in model.modules()] == state
        assert all(map(torch.equal, outputs(model, x), expected))


@pytest.mark.parametrize(
    ("build", "channels"),
    [
        (lambda: Torchvision(num_classes=18), 3),
        thorough(lambda: Timm(32, (6, 12, 24, 16), num_classes=18), 3),
        thorough(lambda: torchxrayvision.models.DenseNet(weights=None), 1),
        thorough(lambda: Monai(2, 1, 18), 1),
    ],
    ids=["torchvision", "timm", "torchxrayvision", "monai"],
)
def test_kept_bytes_of_densenet121_at_224(build, channels):
    """At least 4.5 times fewer than stock; 128 MB an image in all four libraries."""
    model, x = build(), torch.randn(2, channels, 224, 224)
    stock = measure(model, x).live
    densenet_fast.convert(model)
    assert stock / measure(model, x).live >= 4.5


def test_kept_bytes_of_a_volume():
    """MONAI's DenseNet-121 at 64x64x64: at least 3 times fewer."""
    model, x = Monai(3, 1, 2), torch.randn(1, 1, 64, 64, 64)
    stock = measure(model, x).live
    densenet_fast.convert(model)
    assert stock / measure(model, x).live >= 3


def test_recomputation_follows_the_librarys_own_words():
    """torchvision's memory_efficient, timm's set_grad_checkpointing, also after the conversion."""
    model = Torchvision(8, (2, 2), 16, memory_efficient=True)
    densenet_fast.convert(model)
    assert model.features.denseblock1.efficient
    model = Timm(8, (2, 2))
    densenet_fast.convert(model)
    assert not model.features.denseblock1.efficient
    x = torch.randn(2, 3, 64, 64)
    kept = measure(model, x).live
    model.set_grad_checkpointing()
    assert measure(model, x).live < kept
    model = Timm(8, (2, 2))
    densenet_fast.convert(model, efficient=True)
    assert measure(model, x).live < kept


def test_timms_methods():
    model = Timm(8, BLOCKS, num_classes=5).double().eval()
    stock = copy.deepcopy(model)
    densenet_fast.convert(model)
    x = torch.randn(2, 3, 64, 64).double()
    with torch.no_grad():
        assert relative([model.forward_features(x)], [stock.forward_features(x)]) <= 1e-10
        theirs = stock.forward_intermediates(x, indices=3, stop_early=True, intermediates_only=True)
        ours = model.forward_intermediates(x, indices=3, stop_early=True, intermediates_only=True)
        assert relative(ours, theirs) <= 1e-10
        for each in (model, stock):
            each.reset_classifier(3)
            nn.init.ones_(each.classifier.weight)
            nn.init.ones_(each.classifier.bias)
            each.double()
        assert relative([model(x)], [stock(x)]) <= 1e-10
        for each in (model, stock):
            each.prune_intermediate_layers(2)
        assert relative([model.forward_features(x)], [stock.forward_features(x)]) <= 1e-10
    assert model.feature_info == stock.feature_info
    assert model.group_matcher() == stock.group_matcher()


def test_xrays_features_and_smps_taps():
    model = torchxrayvision.models.DenseNet(8, BLOCKS, 16, in_channels=1).double().eval()
    stock = copy.deepcopy(model)
    densenet_fast.convert(model)
    x = torch.randn(2, 1, 64, 64).double()
    with torch.no_grad():
        assert relative([model.features2(x)], [stock.features2(x)]) <= 1e-10
        encoder = smp.encoders.get_encoder("densenet121", weights=None, depth=5).double().eval()
        theirs = encoder(x.expand(-1, 3, -1, -1))
        densenet_fast.convert(encoder)
        assert relative(encoder(x.expand(-1, 3, -1, -1)), theirs) <= 1e-10


def test_what_cannot_run_fused_is_left_or_an_error():
    model = Torchvision(8, BLOCKS, 16, num_classes=5)
    model.features.denseblock2.denselayer1.norm1 = nn.GroupNorm(4, 16)
    model.features.transition3.pool = nn.MaxPool2d(2)
    classes = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=r"denseblock2 .* left: denselayer1\.norm1 is GroupNorm, not BatchNorm2d"):
        densenet_fast.convert(model, on_unsupported="raise")
    assert [type(m) for m in model.modules()] == classes
    report = densenet_fast.convert(model)
    assert [part.name for part in report.left] == ["features.denseblock2", "features.transition3"]
    assert str(report).endswith("6 of 8 parts run fused")
    assert "features.transition3  transition   torchvision  left: pool is MaxPool2d, not AvgPool2d" in str(report)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert densenet_fast.convert(model) == report
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="cannot convert all"):  # what was converted before stays so
        densenet_fast.convert(model, on_unsupported="raise")
    assert [type(m) for m in model.modules()] == before


def test_a_stem_that_no_sequential_calls_is_left():
    model = nn.Sequential(OrderedDict(body=FeatureListNet(Timm(8, BLOCKS), (1, 3), flatten_sequential=True)))
    why_left = "it is called by FeatureListNet, not by an nn.Sequential"
    expected = Part("body.features_conv0", "stem", "torch", why_left)
    assert densenet_fast.convert(model).left == densenet_fast.convert(model).left == (expected,)
    del model.body.features_conv0
    assert [part.name for part in densenet_fast.convert(model).left] == ["body.features_norm0"]
    del model.body.features_pool0
    assert densenet_fast.convert(model).left == ()


def test_an_overridden_forward_and_another_activation_are_left():
    class Doubled(Torchvision.__init__.__globals__["_DenseBlock"]):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Torchvision(8, (2, 2), 16, num_classes=5)
    model.features.denseblock1 = Doubled(2, 16, 4, 8, 0.0)
    assert densenet_fast.convert(model).left[0].why_left == "its forward is not _DenseBlock's"
    model = Timm(8, (2, 2), act_layer="silu")
    reasons = [part.why_left for part in densenet_fast.convert(model).left]
    assert reasons[:2] == ["denselayer1.norm1 act is SiLU, not ReLU", "norm act is SiLU, not ReLU"]


@pytest.mark.parametrize("name", ["backend", "spatial_dims", "reading", "stock"])
def test_what_has_a_name_of_ours_keeps_it(name):
    """Attributes that the model's owner has set, and that a conversion would have to take."""
    model = Torchvision(8, (2, 2, 1), 16)
    parts = [model.features, model.features.denseblock1, model.features.transition2]
    for part in parts:
        setattr(part, name, "mine")
    report = densenet_fast.convert(model)
    kinds = ["trunk", "dense block", "transition"]
    words = f"it has a '{name}' of its own, which converted parts have, too"
    assert [(part.kind, part.why_left) for part in report.left] == [(kind, words) for kind in kinds]
    assert len(report.converted) == 3
    densenet_fast.revert(model)
    assert [getattr(part, name) for part in parts] == ["mine"] * 3


def test_a_block_that_is_told_to_recompute_does_so():
    model = copies.net().train()
    for block in (model[0].denseblock1, model[0].denseblock2):
        block.efficient = True
    densenet_fast.convert(model, on_unsupported="raise")
    assert model[0].denseblock1.efficient
    densenet_fast.revert(model)
    assert vars(model[0].denseblock1)["efficient"]


def test_options_are_checked_before_anything_changes():
    model = Torchvision(8, (2,), 16)
    for options, error, words in [
        ({"backend": "cuda"}, ValueError, "backend"),
        ({"on_unsupported": "ignore"}, ValueError, "on_unsupported: got 'ignore', expected 'leave' or 'raise'"),
    ]:
        with pytest.raises(error, match=words):
            densenet_fast.convert(model, **options)
    with pytest.raises(TypeError, match=r"model: got list, expected a torch\.nn\.Module"):
        densenet_fast.convert([model])
    assert not any(isinstance(m, Fusable | Trunk) for m in model.modules())


def test_a_model_without_dense_blocks():
    parts = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "pool": nn.AvgPool2d(2)}  # no transition's order
    model = nn.Sequential(OrderedDict(parts))
    assert str(densenet_fast.convert(model)) == "no dense blocks of a library that convert() knows"
    with pytest.raises(ValueError, match="no dense blocks"):
        densenet_fast.convert(model, on_unsupported="raise")
    assert type(model) is nn.Sequential


def test_our_own_models_are_converted_already():
    model = densenet_fast.DenseNet(4, (2, 2), efficient=True, backend="eager")
    report = densenet_fast.convert(model)
    assert {part.package for part in report} == {"densenet_fast"}
    assert model.features.denseblock1.efficient
    densenet_fast.revert(model)
    assert isinstance(model.features, Trunk)


@pytest.mark.parametrize(
    ("block", "options", "words"),
    [
        (copies.FlaggedBlock, {}, "its forward takes something else than one tensor"),
        (copies.MaskedBlock, {}, "denselayer1 has mask of its own"),
        (copies.TimesLastBlock, {}, "denselayer1.last has tensors, and is no part of a dense layer"),
        (copies.ScaledBlock, {}, "tried on numbers, it is no dense block: relative difference"),
        (copies.DropsChannelsBlock, {"drop_rate": 0.3}, "tried on numbers, it is no dense block: relative difference"),
    ],
)
def test_what_only_looks_like_a_dense_block_is_left(block, options, words):
    model = copies.net(block, **options)
    report = densenet_fast.convert(model)
    assert [words in part.why_left for part in report.left] == [True, True]
    assert type(model[0].denseblock1) is block


def test_a_copy_with_dropout_is_known_by_trial():
    model = copies.net(drop_rate=0.3).double()
    x = torch.randn(2, 3, 16, 16).double()
    state = torch.get_rng_state()
    assert not densenet_fast.convert(model).left
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model(x), model(x))
    stock = copy.deepcopy(model.eval())
    densenet_fast.revert(stock)
    assert relative([model(x)], [stock(x)]) <= 1e-10


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block, "gain", 2),
        lambda block: setattr(block.denselayer2, "gain", 0.5),
        lambda block: setattr(block.denselayer1.last, "p", 1.0),
        lambda block: setattr(block.denselayer1, "last", nn.Tanh()),
    ],
    ids=["block", "layer", "child", "another child"],
)
def test_a_copy_may_be_told_to_compute_something_else_later(change):
    x, stock = torch.randn(2, 3, 16, 16).double(), copies.net(copies.GainedBlock).double()
    ours = copy.deepcopy(stock)
    assert not densenet_fast.convert(ours).left
    ours = copy.deepcopy(ours)
    assert relative([ours(x)], [stock(x)]) <= 1e-10
    assert ours[0].denseblock2.fusable() is not None
    for model in (stock, ours):
        change(model[0].denseblock2)
    assert relative([ours(x)], [stock(x)]) <= 1e-10


def test_pruned_weights_stay_pruned():
    """Their layers have hooks, and cannot be copied; a block that was converted before runs its plain layers then."""
    x = torch.randn(2, 3, 16, 16).double()
    for first in (True, False):
        stock, ours = (copies.net().double() for _ in range(2))
        ours.load_state_dict(stock.state_dict())
        if first:
            assert not densenet_fast.convert(ours).left
        for model in (stock, ours):
            prune.l1_unstructured(model[0].denseblock1.denselayer1.conv2, "weight", 0.5)
        if not first:
            assert densenet_fast.convert(ours).left[0].why_left == "denselayer1.conv2 has hooks"
        for model in (stock, ours):
            with torch.no_grad():
                model[0].denseblock1.denselayer1.conv2.weight_orig.mul_(2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*runs its plain layers")
            assert relative([ours(x)], [stock(x)]) <= 1e-10
