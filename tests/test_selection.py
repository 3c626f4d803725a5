"""Which tests run on a machine with a GPU, collected as there: stand-ins for one are left out, not skipped, for under
DENSENET_FAST_REQUIRE a skipped test fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHERE = (
    "contract",
    "cuda",
    "fuzz",
    "installing",
    "triton",
    "test_build.py",
    "test_exact_and_repeatable.py",
    "test_linking.py",
)


pytestmark = pytest.mark.thorough  # another collection of most tests


@pytest.fixture(scope="module")
def collected():
    """On a GPU machine that has no nvcc."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PATH": ""}
    command = [sys.executable, "-m", "pytest", "-qq", "--thorough", "--collect-only", "-p", "tests.collected_on_a_gpu"]
    result = subprocess.run(
        [*command, *(f"tests/{name}" for name in WHERE)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout[result.stdout.index('{"left out"') :].splitlines()[0])


def test_nothing_is_skipped_on_a_gpu(collected):
    assert collected["skipped"] == []


def test_stand_ins_are_left_out_on_a_gpu(collected):
    left_out, run = collected["left out"], collected["run"]
    for stand_in in (
        "test_ptx.py::",
        "test_launch.py::test_offsets_beyond_32_bits",
        "triton/test_seam.py::",
        "cuda/test_context.py::",
        "test_fuzz.py::test_ours_does_what_stock_layers_do[triton]",
        "cuda/test_operations.py::test_errors_in_bf16",
        "test_modes.py::test_modes_of_the_norms_and_weights[triton-smallest",
        "test_modes.py::test_modes_of_the_norms_and_weights[cuda-smallest",
        "installing/test_build.py::test_cuda_kernels",
    ):
        assert any(stand_in in name for name in left_out), stand_in
        assert not any(stand_in in name for name in run), stand_in
    assert not any("on_a_gpu" in name or "on the GPU" in name for name in left_out)


def test_the_gpu_s_tests_run_on_it(collected):
    for test in (
        "test_modes.py::test_modes_of_the_norms_and_weights[native on the GPU-",
        "test_modes.py::test_modes_of_the_norms_and_weights[triton on the GPU-",
        *(f"-cuda-{backend}-float32]" for backend in ("eager", "native", "triton")),  # test_exact_and_repeatable
        "cuda/test_operations.py::test_opcheck_on_a_gpu",
        "cuda/test_stages.py::test_a_graph_replays_a_step_on_a_gpu",
        "triton/test_stages.py::test_stage_is_as_exact_as_stock",
    ):
        assert any(test in name for name in collected["run"]), test
