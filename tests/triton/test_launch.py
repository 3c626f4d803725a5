"""The launch path: what is specialised, what is recorded, that nothing is imported early, offsets beyond 2**31."""

import mmap
import subprocess
import sys
from collections import Counter
from math import prod

import pytest
import torch

from benchmarks.planned import training
from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.launch import Device, recorded
from densenet_fast.contract import Block, Half, Norm, NormGradient
from densenet_fast.contract.block import z_size

from ..oracle import rms_error
from . import plans

H200, A100 = Device(90, 132), Device(80, 108)


def meta(*shape, dtype=torch.bfloat16):
    x = torch.empty(shape, dtype=dtype, device="meta")
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def norm(channels):
    return Norm(*(meta(channels, dtype=torch.float32) for _ in range(4)), 1e-5)


def pair(channels):
    return meta(2, channels, dtype=torch.float32)


def layer(x, width, growth=32):
    """A block of one layer on the buffer x, and memory for it."""
    n, total, h, w = x.shape
    one, two, c = norm(total - growth), norm(width), total - growth
    tensors = [None, None, one.gamma, one.beta, meta(width, c, 1, 1)]
    tensors += [None, None, two.gamma, two.beta, meta(growth, width, 3, 3)]
    return Block(c, tensors, [1e-5, 1e-5, 0.0], None), pair(total + width), meta(z_size([width], n * h * w))


def forward(x, width, device, growth=32, halves=Half.BOTH):
    """The launches of a layer, planned."""
    block, stats, z = layer(x, width, growth)
    with recorded(device) as launches:
        operations.block_fwd(x, stats, z, block, True, 0, 1, halves)
    return launches


def backward(x, width, device, growth=32, halves=Half.BOTH):
    block, stats, z = layer(x, width, growth)
    gradients = [
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in block.tensors
    ]
    u = meta(x.shape[0], width, *x.shape[2:])
    with recorded(device) as launches:
        operations.block_bwd(x, torch.empty_like(stats), x, stats, z, block, gradients, u, 0, 1, halves)
    return launches


def test_a_variant_is_compiled_once_for_all_sizes():
    """Neither the batch nor the image nor the depth of a layer is compiled in, only divisibility by 8. (Of so many
    programs that a launch of its own merges what they leave, and of so few that they get smaller tiles, there are
    others.)"""

    def variant(x):
        return next(e for e in forward(x, 128, H200) if e.kernel.__name__.startswith("bn_relu")).specialization

    first = variant(meta(32, 128, 56, 56))
    for x in (meta(16, 128, 56, 56), meta(32, 992, 28, 28), meta(9, 232, 35, 38), meta(60, 256, 17, 17)[:, :96]):
        assert variant(x) == first
    few = variant(meta(1, 992, 7, 7))
    assert few != first
    for x in (meta(3, 232, 1, 2), meta(2, 256, 9, 9)[:, :96]):
        assert variant(x) == few
    assert variant(meta(32, 131, 56, 56)) != first
    assert variant(meta(32, 160, 56, 56)[:, 4:132]) != first


def test_a_seed_does_not_decide_a_variant():
    """Seeds lie beside each other, every other one on 8 bytes alone."""
    net = plans.Net(2, 8, 16, 8, None, drop_rate=0.2, layers=2)
    launches, _ = plans.step(net, H200, plans.FORMS["bf16"], True)
    first, second = (e for e in launches if e.kernel.__name__ == "bn_relu_conv3x3_fwd_kernel")
    assert first.arguments["seed"].data_ptr() % 16 != second.arguments["seed"].data_ptr() % 16
    place = list(first.arguments).index("seed")
    assert first.specialization[place] == second.specialization[place]


def test_the_plan_follows_the_architecture():
    found = {
        device: [launch.kernel.__name__ for launch in backward(meta(256, 128, 56, 56), 128, device, halves=Half.FIRST)]
        for device in (A100, H200)
    }
    assert found[H200] == ["clear_kernel", "bn_relu_conv1x1_bwd_kernel", "sum_weight_kernel"]
    assert found[A100] == ["bn_relu_conv1x1_grads_kernel", "finish_bwd_kernel", "sum_weight_kernel"]


@pytest.mark.parametrize("form", plans.FORMS)
@pytest.mark.parametrize("architecture", plans.DEVICES)
@pytest.mark.parametrize("growth", [12, 32, 48, 72])
@pytest.mark.parametrize(
    ("bottleneck", "efficient", "expected"), [(4, False, (2, 4)), (4, True, (2, 5)), (None, False, (1, 4))]
)
def test_launches_of_a_layer(bottleneck, efficient, expected, growth, architecture, form):
    """Two forward and four backward, and one where z is computed again; less without bottleneck. And one on sm_80, or
    where a backward in one pass has more than 128 outputs: they have no registers to spare."""
    forward, backward = expected
    backward += bool(bottleneck) and (architecture == 80 or (growth == 48 and form in ("bf16", "fp16")))
    counts = []
    for layers in (1, 2):
        net = plans.Net(8, 28, 64, growth, "transition", bottleneck, layers=layers)
        step = plans.step(net, plans.DEVICES[architecture], plans.FORMS[form], True, efficient)
        counts.append([len(launches) for launches in step])
    assert [two - one for one, two in zip(*counts, strict=True)] == [forward, backward]


def test_launches_of_a_training_step():
    """Of DenseNet-121 at batch 32 on an H200."""
    found = Counter(
        launch.kernel.__name__.removesuffix("_kernel")
        for launch in training("densenet121", 224, 32, torch.bfloat16, H200)
    )
    for name in ("conv1x1_fwd", "conv1x1_bwd", "conv3x3_fwd", "conv3x3_correct", "conv3x3_wgrad", "conv3x3_dgrad"):
        assert found.pop(f"bn_relu_{name}") == 58
    assert found.total() == 48
    # One in each block's forward and backward, and one where an operation has a single launch that merges.
    assert found.pop("clear") == 13
    assert found.pop("merge_stats") == 1  # of the first convolution
    assert found.pop("finish_bwd") == 4  # of transitions and the stem
    assert found.pop("sum_weight") == 4  # behind each block's first layer
    assert found.pop("update_running_stats") == 7
    assert found == {
        **dict.fromkeys(("channel_stats", "stem_fwd", "head_fwd", "head_bwd", "stem_bwd"), 1),
        **dict.fromkeys(("transition_fwd", "transition_wgrad", "transition_dgrad"), 3),
        "bn_bwd_apply": 5,
    }


def test_arguments_follow_the_kernels_order():
    x = meta(2, 48, 5, 5)
    for launch in forward(x, 64, H200) + backward(x, 64, H200):
        assert list(launch.arguments) == launch.kernel.arg_names


def test_every_row_of_the_table_is_found():
    for (operation, architecture, kind), rows in tiles.TABLE.items():
        device, least = Device(architecture, 132), 1
        for most, tile in rows:
            assert tiles.find(operation, device, kind, least) == tiles.find(operation, device, kind, most) == tile
            least = most + 1
    for architecture, family in ((86, 80), (89, 80), (90, 90), (103, 100), (120, 80)):
        found = tiles.choose("bn_relu_conv1x1_fwd", Device(architecture, 100), tiles.HALF, 128)
        assert found == tiles.choose("bn_relu_conv1x1_fwd", Device(family, 100), tiles.HALF, 128)


def test_grids_fit_whatever_the_batch():
    """The second and third axes of a grid hold 65535 programs."""
    x, half, c, k = meta(4096, 64, 56, 56), meta(4096, 128, 28, 28), 64, 128
    weight, dnorm = meta(k, c, 1, 1), NormGradient(norm(c).gamma, norm(c).beta, pair(c))
    large = meta(16384, c, 112, 112)
    for device in (A100, H200):
        launches = forward(meta(4096, 96, 56, 56), 128, device) + backward(meta(4096, 96, 56, 56), 128, device)
        with recorded(device) as others:
            operations.transition_fwd(x, norm(c), weight, half, pair(k))
            operations.transition_bwd(half, x, norm(c), weight, x, dnorm, weight)
            operations.stem_fwd(x, norm(c), half[:, :c], pair(c))
            operations.stem_bwd(half[:, :c], x, norm(c), x, dnorm)
            operations.stem_bwd(meta(16384, c, 56, 56), large, norm(c), large, dnorm)
            operations.head_fwd(x, norm(c), meta(4096, c))
            operations.head_bwd(meta(4096, c), x, norm(c), x, dnorm)
            operations.channel_stats(x, pair(c))
            operations.bn_bwd_apply(x, x, norm(c).mean, pair(c), x)
        launches += others
        for launch in launches:
            assert all(size <= 65535 for size in launch.grid[1:]), (launch.kernel.__name__, launch.grid)


@pytest.mark.parametrize(("size", "channels"), [(56, 64), (28, 128), (14, 256), (7, 512)])
def test_small_batches_fill_half_of_an_h200(size, channels):
    """The 1x1 forward of DenseNet-121 at batch 32, whose tiles at 7x7 would be 13."""
    launches = forward(meta(32, channels, size, size), 128, H200)
    (first,) = (launch for launch in launches if launch.kernel.__name__ == "bn_relu_conv1x1_fwd_kernel")
    assert prod(first.grid) > 132 // 2


def test_running_statistics_take_one_launch_for_32_norms():
    with recorded(H200) as launches:
        many = [meta(32, dtype=torch.float32)] * 40
        operations.update_running_stats(many, many, [], pair(32), [0] * 40, 9, [0.1] * 40)
    assert [launch.grid for launch in launches] == [(32, 1), (8, 1)]


def test_import_waits_for_the_first_use():
    program = (
        "import sys, torch, densenet_fast; from densenet_fast import backends;"
        "backends.why_unavailable('triton', torch.device('cpu')); print('triton' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def sparse(rows, stride):
    """Rows [1, 16, rows, 1] so far apart that they span more than 2**32 elements; only what is touched takes memory."""
    reserve_nothing = 0x4000  # MAP_NORESERVE, which Python names from 3.13 on
    memory = mmap.mmap(-1, rows * stride * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve_nothing)
    whole = torch.frombuffer(memory, dtype=torch.float32).view(1, rows, 1, stride).permute(0, 3, 1, 2)
    return whole[:, :16]


@pytest.mark.without_gpu  # memory that is only reserved exists on the CPU alone
def test_offsets_beyond_32_bits(triton, eager):
    rows, stride = 2060, 1 << 21
    x, dx = sparse(rows, stride), sparse(rows, stride)
    x.copy_(torch.randn(x.shape))
    near = x.contiguous(memory_format=torch.channels_last)
    z, vectors = torch.randn(z_size([16], rows)), [torch.rand(16) + 0.5 for _ in range(8)]
    tensors = [*vectors[:4], torch.randn(16, 16, 1, 1), *vectors[4:], torch.randn(4, 16, 3, 3)]
    block = Block(
        12, [*(v[:12] for v in tensors[:4]), tensors[4][:, :12].contiguous(), *tensors[5:]], [1e-5] * 2 + [0.0], None
    )
    u, results = torch.randn(1, 16, rows, 1).contiguous(memory_format=torch.channels_last), []
    for ops, x_, g in ((triton, x, dx), (eager, near, torch.zeros_like(near))):
        stats, bottleneck = torch.zeros(2, 32), z.clone()
        ops.block_fwd(x_, stats, bottleneck, block, True, 0, 1, Half.BOTH)
        gradients = [None, None, *(torch.zeros_like(t) for t in block.tensors[2:5]), *[None] * 5]
        stats[1] += 1
        ops.block_bwd(g, torch.zeros(2, 32), x_, stats, bottleneck, block, gradients, u.clone(), 0, 1, Half.FIRST)
        results.append([x_[:, 12:], stats, bottleneck, g, *gradients[2:5]])
    for got, exact in zip(*results, strict=True):
        assert rms_error(got, exact) < 1e-5
