"""The lazy import, `python -m densenet_fast.info`, and which GPUs kernels run on. How it is built: tests/installing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densenet_fast import backends
from tools.gpucheck import ptxas

ROOT = Path(__file__).parents[1]


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_importing_the_package_does_not_load_the_library():
    code = "import sys, densenet_fast, densenet_fast.info; assert 'densenet_fast._C' not in sys.modules"
    assert python("-c", code).returncode == 0


def test_info_tells_the_build_and_every_backend():
    shown = python("-m", "densenet_fast.info", TRITON_INTERPRET="0").stdout
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert f"cpu {dtype}: eager available" in shown
    assert "cpu float64: native not available: " in shown
    assert "triton not available: " in shown
    if backends.why_unavailable("native", torch.device("cpu")) is None:
        assert "instruction sets compiled: " in shown
        assert "cpu float32: native available" in shown
        from densenet_fast import _C

        assert ("  no amx_bf16: " in shown) == ("amx_bf16" not in _C.instruction_sets())
        assert ("bn_relu_conv1x1_fwd_kernel<" in shown) == ("nvcc" in _C.build_facts())
        assert all(spilled == 0 for *_, spilled in _C.cuda_kernels())
        assert "cpu bfloat16: native available" in shown
        assert "cpu float16: native available" in shown
    else:
        assert "cpu float32: native not available: " in shown


OBJECTS = Path(os.environ.get("DENSENET_FAST_BUILD_OBJECTS") or ROOT / "build/objects")


@pytest.mark.skipif(not (OBJECTS / "cuda").is_dir(), reason="no CUDA kernels were built in this checkout")
def test_ptxas_lets_no_product_of_the_cuda_kernels_wait_for_another():
    """As nvcc passed it on for every architecture of the build."""
    said = [file.read_text() for file in (OBJECTS / "cuda").glob("*.said")]
    assert said
    assert any("Compiling entry function" in text for text in said)
    assert [why for text in said for why in ptxas.serialised(text)] == []


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), ["8.0"], True),
        ((8, 9), ["8.0", "9.0"], True),  # machine code of a lower minor version
        ((8, 0), ["8.6"], False),
        ((7, 5), ["8.0+PTX"], False),
        ((9, 0), ["8.0"], False),
        ((9, 0), ["8.0+PTX"], True),
        ((12, 0), ["9.0a", "10.0"], False),
        ((12, 0), ["10.0+PTX"], True),
    ],
)
def test_whether_compiled_kernels_run_on_a_gpu(capability, architectures, runs):
    assert (backends.why_not_compiled_for(capability, architectures) is None) == runs
