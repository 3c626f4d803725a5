"""Features on the way through a net, against timm's of the same weights; what they keep; what happens to who changes
them."""

import copy

import pytest
import torch
from timm.models.densenet import DenseNet as Timm

from benchmarks.memory import measure
from densenet_fast import DenseNet
from densenet_fast.torchvision import DenseNet as Ours

from .oracle import away_from_start, error
from .rows import thorough
from .test_changes import stages

BLOCKS = (2, 3, 2, 2)


def pair(**options):
    torch.manual_seed(0)
    theirs = away_from_start(Timm(8, BLOCKS, num_classes=5).double())
    theirs.features.norm0.bias.data.sub_(1.5)  # else all its maxima are positive, and its gradient cancels
    ours = Ours(8, BLOCKS, 16, num_classes=5, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def image():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(model, x, used=lambda y, taps: [y, *taps], **options):
    """Output, taps, gradients, running statistics; `used`: what the loss is made of."""
    leaf = x.clone().requires_grad_()
    y, taps = model.forward_intermediates(leaf, **options)
    generator = torch.Generator().manual_seed(2)
    losses = [(t * torch.randn(t.shape, dtype=t.dtype, generator=generator)).sum() for t in used(y, taps)]
    torch.stack(losses).sum().backward()
    return [y, *taps], [leaf.grad, *[p.grad for p in model.parameters()]], list(model.buffers())


def check(ours, theirs):
    for found, expected, bound in zip(ours, theirs, (1e-10, 1e-9, 1e-9), strict=True):
        assert [t is None for t in found] == [t is None for t in expected]
        assert [
            error(a, b) for a, b in zip(found, expected, strict=True) if a is not None and error(a, b) >= bound
        ] == []


CALLS = {
    "all": {},
    "some": {"indices": torch.tensor([1, 2])},
    "some, and no more": {"indices": (2, 1), "stop_early": True},
    "the last two": {"indices": 2},
    "first and last": {"indices": [-1, 0], "stop_early": True},
    "the stem": {"indices": [0], "stop_early": True},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"efficient": True}, {"backend": "plain"}], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_values_and_gradients_are_timms(call, options):
    theirs, ours = pair(**options)
    check(step(ours, image(), **CALLS[call]), step(theirs, image(), **CALLS[call]))


@pytest.mark.parametrize(
    "used", [lambda y, taps: taps[1:2], lambda y, taps: [y], lambda y, taps: taps[2:4]], ids=["one", "none", "two"]
)
def test_a_loss_of_some_of_them(used):
    """What nothing comes back from has no gradient, in the stages behind the last that is used, too."""
    theirs, ours = pair()
    check(step(ours, image(), used), step(theirs, image(), used))


def test_what_timm_tells_of_them():
    theirs, ours = pair()
    keys = ("num_chs", "reduction")
    assert [[i[k] for k in keys] for i in ours.feature_info] == [[i[k] for k in keys] for i in theirs.feature_info]
    for info, tap in zip(ours.feature_info, ours.forward_intermediates(image(), intermediates_only=True), strict=True):
        assert tap.shape == (2, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])
        ours.get_submodule(info["module"])
    dilated = Ours(8, BLOCKS, 16, output_stride=8)
    assert [info["reduction"] for info in dilated.feature_info] == [2, 4, 8, 8, 8]
    small = DenseNet(4, (1, 2, 1), bn_size=None)
    assert [info["module"] for info in small.feature_info] == [
        f"features.{name}" for name in ("denseblock1", "denseblock2", "norm_final")
    ]
    taps = small.forward_intermediates(torch.randn(2, 3, 8, 8), intermediates_only=True)
    for tap, info in zip(taps, small.feature_info, strict=True):
        assert tap.shape[1:] == (info["num_chs"], 8 // info["reduction"], 8 // info["reduction"])


@pytest.mark.parametrize("change", ["frozen norms", "hooks", "autocast", "double backward", "volumes"])
def test_in_other_modes(change):
    """Beside our own plain layers."""
    config = {"spatial_dims": 3} if change == "volumes" else {}
    ours = away_from_start(DenseNet(4, (2, 1, 1), num_init_features=6, **config).double())
    x, seen = torch.randn(2, 3, *[8] * ours.features.spatial_dims, dtype=torch.float64), []
    if change == "frozen norms":
        ours.features.transition1.norm.eval()
        ours.features.denseblock2.denselayer1.norm1.eval()
    plain = copy.deepcopy(ours).set_backend("plain")
    results = []
    for model in (ours, plain):
        if change == "hooks":
            model.features.denseblock1.register_forward_hook(lambda *_: seen.append(0))
            model.features.transition2.register_forward_hook(lambda module, inputs, y: 2 * y)
        with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
            given = x.float() if change == "autocast" else x
            if change == "autocast":
                model.float()
            if change != "double backward":
                results.append(step(model, given))
                continue
        leaf = given.clone().requires_grad_()
        y, taps = model.forward_intermediates(leaf)
        loss = sum(t.square().sum() for t in (y, *taps[:2]))
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        results.append(([first], [*torch.autograd.grad(first.square().sum(), [leaf])], []))
    if change == "autocast":
        for a, b in zip(results[0][0], results[1][0], strict=True):
            assert a.dtype == b.dtype
            assert error(a, b) < 0.05
    else:
        check(*results)
    assert len(seen) == 2 * (change == "hooks")


@pytest.mark.parametrize("efficient", [False, True])
def test_taps_cost_no_copy(efficient):
    """Bytes that are alive behind a forward with taps of blocks are those of one without, and the output's own."""
    model = Ours(8, BLOCKS, 16, num_classes=5, efficient=efficient, backend="eager")
    x = torch.randn(2, 3, 64, 64)

    def live(indices):
        call = lambda x: torch.cat([t.flatten() for t in model.forward_intermediates(x, indices)[1]])  # noqa: E731
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = call(x)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        del y
        return sum(storages.values())

    last = live([4])
    assert live([1, 2, 3, 4]) == last
    assert live([1]) == last
    pixels = 2 * 16 * 32 * 32
    # The stem's: itself, the maxima's places, and what is else recomputed, the convolution's output.
    assert live([0, 4]) - last <= 4 * pixels * (1 + efficient) + 8 * pixels // 4 + 1000


def test_stages_stay_whole():
    model = Ours(8, BLOCKS, 16, backend="eager")
    y, taps = model.forward_intermediates(torch.randn(2, 3, 64, 64), [1, 2, 3])
    assert stages(y) == 5  # the stem, three blocks with their transitions, the last block
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in taps)


@pytest.mark.parametrize("index", [1, 3])
def test_who_changes_a_tap_in_place_is_told(index):
    """As with PyTorch's layers, which have saved it too."""
    theirs, ours = pair()
    for model in (theirs, ours):
        y, taps = model.forward_intermediates(image())
        taps[index].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (y.sum() + taps[index].sum()).backward()


def test_without_gradients_it_may_be_changed():
    theirs, ours = pair()
    found = []
    for model in (theirs.eval(), ours.eval()):
        with torch.no_grad():
            y, taps = model.forward_intermediates(image())
            taps[1].mul_(2)
            found.append([y, *taps])
    assert all(error(a, b) < 1e-10 for a, b in zip(*reversed(found), strict=True))


def compiled_pair(**config):
    """A way to call a compiled net for some of its features, the net, and the same without a compiler."""
    torch.compiler.reset()
    model = away_from_start(DenseNet(**{"growth_rate": 4, "num_classes": 3} | config).double())
    found = []
    for net, wrapper in ((copy.deepcopy(model), torch.compile), (model, lambda call, **_: call)):

        def taps(x, indices=None, net=net):
            return net.forward_intermediates(x, indices, intermediates_only=True)

        found.append((wrapper(taps, backend="aot_eager", fullgraph=True), net))
    return found


# Rows of the first net's buffers are multiples of 16 bytes, of the second's not.
@pytest.mark.parametrize(("width", "indices"), [(8, None), thorough(7, None), thorough(8, [0])])
def test_a_compiled_net_gives_them_too(width, indices):
    x, found = torch.randn(2, 3, 8, 8, dtype=torch.float64), []
    for call, net in compiled_pair(block_config=(1, 1), num_init_features=width):
        y = call(x, indices)
        sum((t.relu() * torch.arange(t.numel()).view(t.shape)).sum() for t in y).backward()
        found.append([*y, *[p.grad for p in net.features.parameters()], *net.buffers()])
    for got, right in zip(*found, strict=True):
        assert (got is None) == (right is None)
        assert got is None or error(got, right) < 1e-9


@pytest.mark.parametrize(
    "config", [{}, thorough({"output_stride": 1}), thorough({"spatial_dims": 3, "efficient": True})], ids=str
)
def test_a_compiled_net_copies_none_of_them_either(config):
    x, kept = torch.randn(2, 3, *[16] * config.get("spatial_dims", 2), dtype=torch.float64), []
    for call, net in compiled_pair(block_config=(3, 1), num_init_features=8, **config):
        kept.append(measure(net, x, lambda y: torch.stack([t.square().sum() for t in y]).sum(), call))
    assert kept[0].live <= 1.01 * kept[1].live


def test_who_changes_a_tap_of_a_compiled_net_in_place_is_told():
    (call, _), _ = compiled_pair(block_config=(1, 1), num_init_features=8)
    for index in (0, 1):
        taps = call(torch.randn(2, 3, 8, 8, dtype=torch.float64))
        taps[index].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            sum(t.sum() for t in taps).backward()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"indices": 6}, "indices: got the last 6, expected 1 to 5 of them"),
        ({"indices": 0}, "got the last 0"),
        ({"indices": [5]}, r"indices: got \[5\], expected some from -5 to 4"),
        ({"indices": []}, r"got \[\]"),
        ({"output_fmt": "NLC"}, "output_fmt: got 'NLC', expected 'NCHW'"),
    ],
)
def test_what_there_is_not(options, text):
    with pytest.raises(ValueError, match=text):
        Ours(4, (1, 1, 1, 1), 4).forward_intermediates(torch.randn(2, 3, 64, 64), **options)
