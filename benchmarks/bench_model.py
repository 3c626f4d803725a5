"""Whole nets: a training step and inference, every peer in turns; and a training step with glibc's own allocator."""

import subprocess
import sys

import pytest

from .subjects import net


@pytest.mark.parametrize("phase", ["forward", "forward+backward"])
def test_training(turn, settings, variant: str, phase: str) -> None:
    turn("training", settings.workload(net(settings.model, settings.image), True), variant, phase)


def test_inference(turn, settings, variant: str) -> None:
    turn("inference", settings.workload(net(settings.model, settings.image), False), variant, "inference")


def test_training_with_the_default_allocator(request, settings) -> None:
    """The same in a process whose allocator hands memory back to the kernel after every large tensor: there the page
    faults are part of the step."""
    option = request.config.option
    if settings.device.type != "cpu" or option.allocator == "default":
        pytest.skip("only where the CPU's allocator is kept from handing memory back")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", "test_training and not allocator"]
    command += ["--allocator=default", f"--peers={settings.best}", "--seconds=0", f"--results={option.results}"]
    command += [f"--{name}={getattr(option, name)}" for name in ("model", "image", "batch", "dtype", "rounds")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
