"""A block in one operation: its layers' launches, planned once; all checked before anything is written."""

from types import SimpleNamespace

import pytest
import torch

from densenet_fast import backends
from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import plan
from densenet_fast.backends.triton.launch import recorded
from densenet_fast.functional import dense_stage

from ..native.test_dense_block import TOTAL, C, G, K, arguments, image
from ..opcheck import opcheck
from ..oracle import as_under_autocast, leaves_to, make_stage, parameters, require_grad, rms_error, stage
from . import plans
from .compare import FORMATS
from .conftest import DEVICE
from .plans import DEVICES
from .test_stages import all_values

END = C + sum(G)


@pytest.fixture(autouse=True)
def _device():
    with DEVICE:
        yield


def forward_arguments(running=False, drop=0.0, keep_z=True):
    tensors, numbers = arguments((running, running), drop)
    z = [image(k) for k in K if keep_z]
    z_mean, z_var = ([torch.ones(0 if running else k) for k in K] for _ in range(2))
    return [image(TOTAL), torch.zeros(TOTAL), torch.ones(TOTAL), True, C, tensors, numbers, z, z_mean, z_var]


def backward_arguments(x, mean, var, _, channels, tensors, *rest):
    """The gradients of the second weights are not wanted."""
    gradients = []
    for weight1, weight2 in zip(tensors[4::11], tensors[9::11], strict=True):
        vectors = [torch.zeros(weight.shape[1]) for weight in (weight1, weight1, weight2, weight2)]
        gradients += [*vectors[:2], torch.zeros_like(weight1), *vectors[2:], torch.zeros(0)]
    return [image(TOTAL), torch.zeros(TOTAL), torch.zeros(TOTAL), x, mean, var, channels, tensors, *rest, gradients]


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("keep_z", [True, False])
def test_opcheck(triton, running, keep_z):
    forward = forward_arguments(running, 0.3, keep_z)
    opcheck(triton.dense_block_fwd, tuple(forward))
    opcheck(triton.dense_block_bwd, tuple(backward_arguments(*forward)))


@pytest.mark.parametrize(
    ("frozen", "efficient", "layout"),
    [
        ((), False, "channels_last"),
        ((), True, "transposed"),
        ((0, 2), True, "contiguous"),
        ((1, 3), False, "contiguous"),
        (range(4), False, "channels_last"),
    ],
    ids=str,
)
def test_one_operation_is_the_layers_one_by_one(triton, monkeypatch, frozen, efficient, layout):
    """To the bit, on the tensors it was planned for and on others."""

    def laid_out(weight):
        if layout == "transposed":
            return weight.transpose(0, 1).contiguous().transpose(0, 1)
        return weight.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else weight

    results = []
    for without in ((), ("dense_block_fwd", "dense_block_bwd")):
        ops = SimpleNamespace(**{name: f for name, f in vars(triton).items() if name not in without})
        monkeypatch.setattr(backends, "operations", lambda *_, ops=ops: ops)
        for seed in range(2):
            torch.manual_seed(seed)
            layers, consumer = make_stage(13, (7, 5), "head", dtype=torch.float32, frozen=frozen, drop_rate=0.2)
            layers = [s._replace(weight1=laid_out(s.weight1), weight2=laid_out(s.weight2)) for s in layers]
            steps = require_grad((layers, consumer))
            y = dense_stage(torch.randn(2, 13, 5, 4), *steps, backend="triton", efficient=efficient).y
            results.append((y, *torch.autograd.grad(y, parameters(steps), torch.ones_like(y))))
    for one, each in zip(results[:2], results[2:], strict=True):
        assert all(map(torch.equal, one, each))


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [range(5), (1, 3)], ids=str)
def test_running_statistics_without_z_are_as_exact_as_stock(form, frozen):
    """Where nobody keeps z, the running norm2 is applied before z is rounded."""
    dtype, ratios = FORMATS[form].dtype, []
    for seed in range(5):
        torch.manual_seed(seed)
        steps = as_under_autocast(make_stage(13, (12, 7), "head", frozen=frozen), dtype)
        exact_steps, x = leaves_to(steps, torch.float64), torch.randn(2, 13, 6, 5).to(dtype)
        cotangent = torch.randn(2, 32)
        exact = all_values(lambda x, s: stage(x, *s), exact_steps, x.double(), cotangent)
        stock = all_values(lambda x, s: stage(x, *s), steps, x, cotangent)
        ours = all_values(lambda x, s: dense_stage(x, *s, backend="triton", efficient=True).y, steps, x, cotangent)
        ratios.append([(rms_error(a, e), rms_error(b, e)) for a, b, e in zip(ours, stock, exact, strict=True)])
    for i in range(len(ratios[0])):
        our, their = (sorted(r[i][side] for r in ratios)[2] for side in (0, 1))
        assert our <= 2 * their + torch.finfo(dtype).eps, f"value {i}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize("keep_z", [True, False])
def test_only_the_layers_channels_are_touched(triton, keep_z):
    """Channels of NaN around the block's and behind its layers stay NaN, and reach nothing else."""

    def placed():
        whole = torch.full_like(image(TOTAL + 8), float("nan"))
        return whole, whole[:, 4 : 4 + TOTAL]

    forward = forward_arguments(drop=0.3, keep_z=keep_z)
    whole, forward[0] = placed()
    forward[0][:, :C] = torch.randn(2, C, 6, 5)
    forward[1][C:], forward[2][C:] = float("nan"), float("nan")
    triton.dense_block_fwd(*forward)
    of_g, g = placed()
    g[:, :END] = torch.randn(2, END, 6, 5)
    backward = backward_arguments(*forward)
    backward[0] = g
    triton.dense_block_bwd(*backward)
    for buffer in (whole, of_g):
        assert torch.cat([buffer[:, :4], buffer[:, 4 + END :]], 1).isnan().all()
        assert not buffer[:, 4 : 4 + END].isnan().any()
    found = [v[:END] for v in (*forward[1:3], *backward[1:3])]
    assert not any(t.isnan().any() for t in (*found, *forward[-1], *forward[-2], *forward[-3], *backward[-1]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda: {"x": torch.zeros(1, 8, 2, 2), "mean": torch.zeros(8), "var": torch.ones(8)},
            "channels: got 5, 10 behind",
        ),
        (lambda: {"channels": 4}, "sizes of gamma1: got [5], expected [4]"),
        (lambda: {"numbers": [0.0]}, "lengths of tensors, numbers, z, z_mean and z_var: got [22, 1, 0, 2, 2]"),
        (lambda: {"z_mean": []}, "lengths of tensors, numbers, z, z_mean and z_var: got [22, 6, 0, 0, 2]"),
        (lambda: {"z_var": [torch.zeros(6), torch.zeros(3)]}, "sizes of z_var: got [3], expected [4]"),
        (lambda: {"mean": torch.zeros(3)}, "sizes of mean: got [3]"),
        (lambda: {"var": torch.zeros(2 * TOTAL)[::2]}, "strides of var: got [2]"),
        (
            lambda: {"x": torch.zeros(1, TOTAL, 2, 2).half()},
            "dtype of weight1: got torch.float32, expected torch.float16",
        ),
        (lambda: {"z": [torch.zeros(2, 8, 6, 5)[:, :k] for k in K]}, "strides of z: got"),
        (lambda: {"z": [image(8)[:, :k] for k in K]}, "strides of z: got"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_written(triton, change, told):
    names = ("x", "mean", "var", "tracked", "channels", "tensors", "numbers", "z", "z_mean", "z_var")
    named = dict(zip(names, forward_arguments(keep_z=False), strict=True)) | change()
    named["x"] = named["x"].contiguous(memory_format=torch.channels_last)
    before = named["x"].clone()
    with pytest.raises(RuntimeError, match="densenet_fast::dense_block_fwd: wrong " + told.replace("[", r"\[")):
        triton.dense_block_fwd(*named.values())
    assert torch.equal(named["x"], before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: a[-1].pop(), "length of gradients: got 11, expected 6 for each of 2 layers"),
        (lambda a: a[-1].__setitem__(2, torch.zeros(K[0], C, 1)), "sizes of dweight1: got [6, 5, 1]"),
        (lambda a: a[-1].__setitem__(2, torch.zeros(C, K[0], 1, 1).transpose(0, 1)), "strides of dweight1: got"),
        (lambda a: a[-1].__setitem__(3, torch.zeros(2 * K[0])[::2]), "strides of dgamma2: got [2]"),
        (lambda a: a.__setitem__(0, a[0].half()), "dtype of g: got torch.float16, expected torch.float32"),
        (lambda a: a.__setitem__(1, torch.zeros(3)), "sizes of a: got [3]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_gradients_are_refused_before_anything_is_written(triton, change, told):
    backward = backward_arguments(*forward_arguments())
    change(backward)
    before = backward[0].clone()
    with pytest.raises(RuntimeError, match="densenet_fast::dense_block_bwd: wrong " + told.replace("[", r"\[")):
        triton.dense_block_bwd(*backward)
    assert torch.equal(backward[0], before)


def test_tensors_that_share_memory_are_refused_although_the_plan_is_known(triton):
    forward = forward_arguments()
    backward = backward_arguments(*forward)
    triton.dense_block_fwd(*forward)
    triton.dense_block_bwd(*backward)
    x, z = forward[0], forward[7]
    inside = x.as_strided(z[0].shape, z[0].stride(), 100)
    known = plan._plan.cache_info().misses
    with pytest.raises(RuntimeError, match="dense_block_fwd: wrong memory: got tensors that share some"):
        triton.dense_block_fwd(*forward[:7], [inside, z[1]], *forward[8:])
    with pytest.raises(RuntimeError, match="dense_block_bwd: wrong memory: got tensors that share some"):
        triton.dense_block_bwd(x, *backward[1:])
    assert plan._plan.cache_info().misses == known


def test_tensors_of_two_devices_are_refused():
    forward = forward_arguments()
    forward[5][0] = forward[5][1] = torch.ones(C, device="meta")
    with pytest.raises(RuntimeError, match=rf"wrong device: got \['{DEVICE}.*', 'meta'\], expected one"):
        operations.dense_block_fwd(*forward)


CHANGES = {
    "eps": lambda a: a[6].__setitem__(0, 1e-4),
    "drop_rate": lambda a: a[6].__setitem__(2, 0.5),
    "no beta": lambda a: a[5].__setitem__(3, None),
    "running statistics": lambda a: a[5].__setitem__(slice(2), [torch.empty(C), torch.empty(C)]),
    "not tracked": lambda a: a.__setitem__(3, False),
    "batch": lambda a: (a.__setitem__(0, torch.cat([image(TOTAL)] * 2)), a[7].clear()),
    "row stride": lambda a: a.__setitem__(0, image(TOTAL + 4)[:, :TOTAL]),
    "alignment": lambda a: a.__setitem__(0, image(TOTAL + 4)[:, 1 : TOTAL + 1]),
    "alignment of a weight": lambda a: a[5].__setitem__(4, torch.empty(K[0] * C + 1)[1:].view(K[0], C, 1, 1)),
    "layout of a weight": lambda a: a[5].__setitem__(9, torch.empty(G[0], 3, 3, K[0]).permute(0, 3, 1, 2)),
    "z not kept": lambda a: a[7].clear(),
    "precision": lambda a: None,
}


def seen(arguments):
    """All that a launch consists of, but for where its tensors begin."""
    with recorded(DEVICES[90]) as launches:
        operations.dense_block_fwd(*arguments)
    numbers = [
        [v.storage_offset() if isinstance(v, torch.Tensor) else v for v in entry.arguments.values()]
        for entry in launches
    ]
    return [(e.kernel.__name__, e.grid, e.options, e.specialization, n) for e, n in zip(launches, numbers, strict=True)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_serves_nothing_it_was_not_made_for(change):
    with torch.device("meta"):
        same, also, changed = (forward_arguments(drop=0.3) for _ in range(3))
        CHANGES[change](changed)
    plan._plan.cache_clear()
    assert seen(same) == seen(also)
    assert plan._plan.cache_info().misses == 1
    if change == "precision":
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # reset by conftest.py
    warm = seen(changed)
    assert plan._plan.cache_info().misses == 2
    plan._plan.cache_clear()
    assert warm == seen(changed)


def test_scratch_memory_is_that_of_the_largest_layer(monkeypatch):
    """For the first block of DenseNet-121, batch 256, bf16: the figure of docs/internals/triton.md."""
    found = []
    monkeypatch.setattr(plan.Plan, "run", lambda self, tensors: found.append(self._scratch))

    def scratch(channels, layers):
        found.clear()
        plans.step(plans.Net(256, 56, channels, 32, None, layers=layers), DEVICES[90], plans.FORMS["bf16"], True)
        return tuple(found)

    forward, backward = scratch(64, 6)
    assert (round(forward / 1e6), round(backward / 1e6)) == (7, 292)
    assert (forward, backward) == tuple(map(max, *(scratch(channels, 1) for channels in range(64, 225, 32))))
