"""`pytest benchmarks/`: the device to measure, and one readable summary at the end."""

import pytest
import torch

from .machine import describe, keep_freed_memory

LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that benchmarks measure (default: cpu)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []
    keep_freed_memory()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def report(request: pytest.FixtureRequest):
    """A function that adds a line to the summary."""
    return request.config.stash[LINES].append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LINES]:
        terminalreporter.section("densenet_fast against torchvision")
        terminalreporter.line(describe(torch.device(config.getoption("--device"))))
        for line in config.stash[LINES]:
            terminalreporter.line(line)
