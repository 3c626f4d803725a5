"""From a net's step to the driver, through all that Triton has in between (seam/), and faults that must not pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.gpucheck import driver

pytestmark = pytest.mark.without_gpu  # where there is one, every other test launches through the driver


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    driver.build(folder)
    result = subprocess.run(
        [sys.executable, "-m", "tests.triton.seam"],
        env=driver.environment(folder),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_step_reaches_the_driver_as_planned(findings):
    """Every parameter, grid, block, size of shared memory, stream and context, of training steps and of inference; a
    second step launches and does nothing else, so that a graph can capture it."""
    found = findings["nets"]
    assert len(found) == 5 * 2
    assert not any(found.values()), found


def test_other_devices_fresh_threads_and_failures(findings):
    found = findings["places"]
    assert "a fresh thread on another device" in found
    assert not any(found.values()), found


def test_a_planned_block_launches_on_the_memory_it_is_given(findings):
    """Of the tensors it was planned for and of others, while another thread launches; another alignment and another
    eps have plans of their own, and a variant is loaded once."""
    found = findings["blocks"]
    assert "a block, shifted" in found
    assert not any(found.values()), found


def test_planted_faults_are_found(findings):
    found = findings["faults"]
    assert not found.pop("none")
    assert len(found) == 6
    assert all(found.values()), found
