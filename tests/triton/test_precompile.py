"""Variants compiled by many processes: what they leave in Triton's cache is what a step looks for."""

import os
import subprocess
import sys

import pytest
import torch

from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton.launch import Device, Launch, recorded
from densenet_fast.backends.triton.precompile import compile_all
from tools.gpucheck import driver

from . import unfit

H200 = Device(90, 132)


def some_launches():
    """Two kernels, one of them for two dtypes."""
    with recorded(H200) as launches:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(2, 16, 8, 8, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)
            operations.channel_stats(x, torch.empty(2, 16, device="meta"))
            operations.channel_stats(x[:1], torch.empty(2, 16, device="meta"))
    return launches


COUNT = """
import os, pathlib
from triton import knobs
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
from triton.runtime import build
from densenet_fast.backends.triton.launch import compile_variant
from tests.triton.test_precompile import some_launches

def counts():
    found, built, compile_c = [], [], build._build
    knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
    build._build = lambda *arguments: (built.append(arguments), compile_c(*arguments))[1]
    compile_variant.cache_clear()
    CudaUtils().__init__()
    for launch in some_launches():
        compiled = launch.compile(90)
        CudaLauncher(compiled.src, compiled.metadata)
    build._build = compile_c
    return [found.count(True), found.count(False), len(built)]

before = counts()
for path in pathlib.Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.*"):
    path.unlink()
print(*before, *counts())
"""


@pytest.mark.without_gpu  # a stub stands in for its driver
@pytest.mark.thorough
def test_a_compiled_variant_is_found_in_the_cache(tmp_path, monkeypatch):
    """By another process, which counts the kernels that it finds, those that it must compile, and the C code that it
    must: two kinds of launchers and what loads kernels; then with the cache emptied."""
    driver.build(tmp_path)
    for name in ("TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    launches = some_launches()
    kernels = [launch.kernel.__name__ for launch in launches]
    assert kernels == ["channel_stats_kernel", "merge_stats_kernel"] * 4
    outcomes = compile_all(launches, 90, processes=2)
    assert sorted((v.kernel, why) for v, why in outcomes.items()) == [(k, None) for k in sorted(kernels[:3])]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["3", "0", "0", "0", "3", "3"]


def test_what_does_not_compile_is_told_and_the_rest_goes_on():
    x = torch.empty(4, device="meta")
    unfit_ones = [Launch(kernel, (1,), {"x": x}, 1, 1) for kernel in (unfit.deadly_kernel, unfit.refused_kernel)]
    outcomes = {v.kernel: why for v, why in compile_all([*unfit_ones, *some_launches()[:1]], 90, processes=1).items()}
    assert outcomes.pop("deadly_kernel") == "the compiler crashed with exit code 9"
    assert "power of 2" in outcomes.pop("refused_kernel")
    assert outcomes == {"channel_stats_kernel": None}
