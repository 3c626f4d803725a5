"""The launch path: what is specialised, what is recorded, that nothing is imported early, offsets beyond 2**31."""

import mmap
import subprocess
import sys

import pytest
import torch

from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import batch_norm, bn_relu_conv1x1, tiles
from densenet_fast.backends.triton.launch import Device, recorded

from ..native.cases import norm
from ..oracle import rms_error
from . import plans

H200, A100 = Device(90, 132), Device(80, 108)


def meta(*shape, dtype=torch.bfloat16):
    x = torch.empty(shape, dtype=dtype, device="meta")
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def vectors(channels):
    return [meta(channels, dtype=torch.float32) for _ in range(4)]


def conv1x1(x, outputs, device):
    """The launches of a 1x1 forward, planned."""
    with recorded(device) as launches:
        bn_relu_conv1x1.bn_relu_conv1x1_fwd(x, *vectors(x.shape[1]), 1e-5, meta(outputs, x.shape[1], 1, 1), True)
    return launches


def test_a_variant_is_compiled_once_for_all_sizes():
    """Neither the batch nor the image nor the depth of a layer is compiled in, only divisibility by 8."""
    first, _ = conv1x1(meta(256, 96, 56, 56), 128, H200)
    others = (meta(32, 96, 56, 56), meta(1, 960, 7, 7), meta(3, 200, 1, 2), meta(2, 256, 9, 9)[:, :64])
    for x in others:
        assert conv1x1(x, 128, H200)[0].specialization == first.specialization
    odd, _ = conv1x1(meta(256, 99, 56, 56), 128, H200)
    assert odd.specialization != first.specialization
    shifted, _ = conv1x1(meta(256, 128, 56, 56)[:, 4:100], 128, H200)
    assert shifted.specialization != first.specialization


def test_the_plan_follows_the_architecture():
    x, z, k, c = meta(256, 96, 56, 56), meta(256, 128, 56, 56), vectors(128), vectors(96)
    found = {}
    for device in (A100, H200):
        with recorded(device) as launches:
            bn_relu_conv1x1.bn_relu_conv1x1_bwd(
                z, z, *k[:3], 1e-5, *k[:2], x, *c, 1e-5, meta(128, 96, 1, 1), True, x, *c[:2], True
            )
        found[device] = [launch.kernel.__name__ for launch in launches]
    assert found[H200] == ["bn_relu_conv1x1_bwd_kernel", "finish_bwd_kernel"]
    assert found[A100] == ["bn_relu_conv1x1_grads_kernel", "finish_bwd_kernel"]


@pytest.mark.parametrize("form", plans.FORMS)
@pytest.mark.parametrize("architecture", plans.DEVICES)
@pytest.mark.parametrize("growth", [12, 32, 48, 72])
@pytest.mark.parametrize(
    ("bottleneck", "efficient", "expected"), [(4, False, (4, 6)), (4, True, (4, 7)), (None, False, (2, 4))]
)
def test_launches_of_a_layer(bottleneck, efficient, expected, growth, architecture, form):
    """Four forward and six backward, whatever the width, and one where z is computed again; half without bottleneck."""
    counts = []
    for layers in (1, 2):
        net = plans.Net(64, 28, 64, growth, "transition", bottleneck, layers=layers)
        step = plans.step(net, plans.DEVICES[architecture], plans.FORMS[form], True, efficient)
        counts.append([len(launches) for launches in step])
    assert tuple(two - one for one, two in zip(*counts, strict=True)) == expected


def test_arguments_follow_the_kernels_order():
    for launch in conv1x1(meta(2, 16, 5, 5), 64, H200):
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
    x, z, y, c, k, g = meta(4096, 64, 56, 56), meta(4096, 128, 56, 56), meta(4096, 32, 56, 56), 64, 128, 32
    of_x, of_z, of_y = (vectors(n) for n in (c, k, g))
    w1, w3, half = meta(k, c, 1, 1), meta(g, k, 3, 3), meta(4096, k, 28, 28)
    for device in (A100, H200):
        with recorded(device) as launches:
            operations.bn_relu_conv1x1_bwd(
                z, z, *of_z[:3], 1e-5, *of_z[:2], x, *of_x, 1e-5, w1, True, x, *of_x[:2], True
            )
            operations.bn_relu_conv1x1_fwd(x, *of_x, 1e-5, w1, True)
            operations.bn_relu_conv3x3_fwd(z, *of_z, 1e-5, w3, 0.0, None, y, *of_y[:2])
            operations.bn_relu_conv3x3_bwd(y, y, *of_y[:3], z, *of_z, 1e-5, w3, 0.0, None, True, None, *of_z[:2], True)
            operations.transition_fwd(x, *of_x, 1e-5, w1, half, *of_z[:2])
            operations.transition_bwd(half, x, *of_x, 1e-5, w1, True, x, *of_x[:2], True)
            operations.stem_fwd(z, *of_z, 1e-5, half, *of_z[:2])
            operations.stem_bwd(half, z, *of_z, 1e-5, True, z, *of_z[:2])
            operations.head_fwd(x, *of_x, 1e-5)
            operations.head_bwd(meta(4096, c), x, *of_x, 1e-5, True, x, *of_x[:2])
            operations.channel_stats(x)
            operations.bn_bwd_apply(x, x, *of_x[:3])
        for launch in launches:
            assert all(size <= 65535 for size in launch.grid[1:]), (launch.kernel.__name__, launch.grid)


def test_running_statistics_take_one_launch_for_16_norms():
    with recorded(H200) as launches:
        many = [meta(32, dtype=torch.float32)] * 40
        batch_norm.update_running_stats(many, many, many, many, [9] * 40, [0.1] * 40)
    assert [launch.grid for launch in launches] == [(16, 1), (16, 1), (8, 1)]


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
    weight, (*of_x, eps), u = torch.randn(16, 16, 1, 1), norm(16, False), torch.randn(1, 16, rows, 1)
    u = u.contiguous(memory_format=torch.channels_last)
    near = x.contiguous(memory_format=torch.channels_last)
    z, *stats = triton.bn_relu_conv1x1_fwd(x, *of_x, eps, weight, True)
    expected, *of_expected = eager.bn_relu_conv1x1_fwd(near, *of_x, eps, weight, True)
    assert rms_error(z, expected) < 1e-6
    for got, exact in zip(stats, of_expected, strict=True):
        assert rms_error(got, exact) < 1e-6
    results = []
    for ops, x_, dx_ in ((triton, x, dx), (eager, near, torch.zeros_like(near))):
        a, b = torch.zeros(16), torch.zeros(16)
        rest = (*stats, None, 1e-5, torch.zeros(16), torch.ones(16), x_, *of_x, eps, weight, True, dx_, a, b, True)
        results.append([*ops.bn_relu_conv1x1_bwd(u.clone(), expected, *rest), dx_, a, b])
    for got, exact in zip(*results, strict=True):
        assert rms_error(got, exact) < 1e-5
