"""FLOPs by PyTorch's own counter: those of stock layers, whoever made the counter when."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from .pairs import BACKENDS, image, pair


def counted(run) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("backend", BACKENDS)
def test_flops_of_forward_and_backward_are_torchvision_s(backend, recwarn):
    """Of odd sizes, whose last row and column a transition's convolution has behind it. An efficient net makes its
    bottlenecks once more, and the first convolution's output."""
    x, found = image(dtype=torch.float32), []
    theirs, ours = pair()
    efficient = copy.deepcopy(ours).set_efficient()
    for model in (theirs, ours.set_backend(backend), efficient.set_backend(backend)):
        model.float()
        y = []
        forward = counted(lambda model=model, y=y: y.append(model(x)))
        found.append((forward, counted(lambda y=y: y[0].sum().backward())))
    assert found[0] == found[1]
    again, (h, w) = 2 * x.shape[0] * 17 * 20 * ours.features.conv0.weight.numel(), (9, 10)
    for block in (ours.features.denseblock1, ours.features.denseblock2):
        again += sum(2 * x.shape[0] * h * w * layer.conv1.weight.numel() for layer in block.values())
        h, w = h // 2, w // 2
    assert found[2] == (found[0][0], found[0][1] + again)
    assert not [warning for warning in recwarn.list if "plain layers" in str(warning.message)]


def test_frozen_weights_are_not_multiplied():
    found = []
    for model in pair():
        model.features.denseblock1.requires_grad_(False)
        model.features.transition1.requires_grad_(False)
        found.append(counted(lambda model=model: model(image()).sum().backward()))
    assert found[0] == found[1]


def test_a_counter_from_before_the_first_step_counts():
    program = (
        "import torch; from torch.utils.flop_counter import FlopCounterMode; import densenet_fast;"
        "model = densenet_fast.DenseNet(4, (2,), backend='eager'); x = torch.randn(2, 3, 8, 8);"
        "counter = FlopCounterMode(display=False); counter.__enter__(); model(x); counter.__exit__(None, None, None);"
        "again = FlopCounterMode(display=False); again.__enter__(); model(x); again.__exit__(None, None, None);"
        "print(counter.get_total_flops() == again.get_total_flops() > 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"
