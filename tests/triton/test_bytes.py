"""The byte model (traffic.py; test_ptx.py checks that launches keep to it) against the least there is to move, for
DenseNet-121 at batch 256."""

from math import prod

import pytest

from densenet_fast.backends.triton.launch import Launch

from . import plans, traffic

# Images of a stage, the channels of its first and of its last layer.
STAGES = {56: (64, 224), 28: (128, 480), 14: (256, 992), 7: (512, 992)}
K, G = 128, 32
MINIMUM = {  # elements per pixel, each read or written once
    "bn_relu_conv1x1_fwd": lambda c: c + K,
    "bn_relu_conv1x1_bwd": lambda c: 2 * K + 3 * c,  # u, z, x, and dx read and written
    "bn_relu_conv3x3_fwd": lambda c: K + G,
    "bn_relu_conv3x3_bwd": lambda c: 2 * G + 2 * K,  # dy, y, z, u
}
BACKWARD = ("bwd", "grads", "correct", "dgrad", "wgrad")


def launches(operation: str, size: int, channels: int, architecture: int) -> list[Launch]:
    """One layer's."""
    net = plans.Net(256, size, channels, G, None, layers=1)
    stem, _, end = operation.rpartition("_")
    first: dict[str, Launch] = {}
    for launch in plans.plan(net, plans.DEVICES[architecture], plans.FORMS["bf16"]):
        first.setdefault(launch.kernel.fn.__name__, launch)
    names = (f"{stem}_{e}_kernel" for e in (BACKWARD if end == "bwd" else (end,)))
    return [first[name] for name in names if name in first]


def ratio(operation: str, size: int, channels: int, architecture: int) -> float:
    """Bytes moved over the least, for one layer."""
    step = launches(operation, size, channels, architecture)
    least = 256 * size * size * MINIMUM[operation](channels) * 2
    return sum(traffic.moved(launch, plans.DEVICES[architecture]) for launch in step) / least


@pytest.mark.parametrize("size", STAGES)
@pytest.mark.parametrize("architecture", [90, 100])
@pytest.mark.parametrize("operation", ["bn_relu_conv1x1_fwd", "bn_relu_conv1x1_bwd"])
def test_conv1x1_moves_little_more_than_it_must(operation, architecture, size):
    """Every layer of the stage."""
    first, last = STAGES[size]
    for channels in range(first, last + 1, G):
        assert 1 <= ratio(operation, size, channels, architecture) <= 1.15


@pytest.mark.parametrize("size", STAGES)
def test_conv1x1_backward_apart(size):
    """sm_80 has too few registers for both gradients in one program: u, z and x are read for each."""
    for channels in STAGES[size]:
        both = (4 * K + 4 * channels) / (2 * K + 3 * channels)
        assert both <= ratio("bn_relu_conv1x1_bwd", size, channels, 80) <= both * 1.15


@pytest.mark.parametrize("size", STAGES)
@pytest.mark.parametrize("architecture", plans.DEVICES)
def test_conv3x3_forward_reads_a_strip_once(architecture, size):
    """Every pixel comes from DRAM once, and is asked for by at most 3 x 6 / 4 programs and taps, not by 9; where longer
    strips leave multiprocessors of sm_90 idle, by 3 x 4 / 2, or by 9."""
    operation, channels = "bn_relu_conv3x3_fwd", STAGES[size][0]
    assert ratio(operation, size, channels, architecture) == 1
    launch, *_ = launches(operation, size, channels, architecture)
    asked = traffic.requested(launch)["x", False] / (256 * size * size * K * 2)
    strip = launch.arguments["STRIP"]
    assert strip == ({56: 7, 28: 4, 14: 2, 7: 1}[size] if architecture == 90 else 4)
    assert asked <= 3 * (strip + 2) / strip


@pytest.mark.parametrize(("size", "strip"), [(56, 4), (28, 1), (14, 1), (7, 1)])
def test_conv3x3_forward_of_few_programs_has_short_strips(size, strip):
    """At batch 32, where 98, 28 and 7 programs of four pixels would leave most of 132 multiprocessors empty."""
    net = plans.Net(32, size, STAGES[size][0], G, None, layers=1)
    forward, _ = plans.step(net, plans.DEVICES[90], plans.FORMS["bf16"], train=True)
    (launch,) = (found for found in forward if found.kernel.fn.__name__ == "bn_relu_conv3x3_fwd_kernel")
    assert launch.arguments["STRIP"] == strip


@pytest.mark.parametrize("size", STAGES)
@pytest.mark.parametrize("architecture", plans.DEVICES)
def test_conv3x3_backward(architecture, size):
    """The gradient of the output is written once more and read twice, z is read twice; the weight's partial gradients
    are at most half of the least there is, or stay in L2."""
    separate = (2 * G + 3 * G + 3 * K) / (2 * G + 2 * K)
    assert separate <= ratio("bn_relu_conv3x3_bwd", size, STAGES[size][0], architecture) <= separate + 0.5


@pytest.mark.parametrize(("size", "programs"), [(56, (132, 132)), (28, (132, 113)), (14, (128, 98)), (7, (128, 25))])
def test_weight_gradients_have_programs_at_batch_32(size, programs):
    """Of the stage's last layer, 1x1 and 3x3: of the latter a program has 128 channels of z and at least a tile of 64
    pixels."""
    net = plans.Net(32, size, STAGES[size][1], G, None, layers=1)
    named = {launch.kernel.fn.__name__: launch for launch in plans.plan(net, plans.DEVICES[90], plans.FORMS["bf16"])}
    kernels = "bn_relu_conv1x1_bwd_kernel", "bn_relu_conv3x3_wgrad_kernel"
    assert tuple(prod(named[kernel].grid) for kernel in kernels) == programs
