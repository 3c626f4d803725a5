"""benchmarks/on_gpu.sh rehearsed without a GPU: every stage, the archives, and a verdict for each."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ["build", "tests", "sanitize", "tune", "compile", "training", "inference", "kernels"]


def on_gpu(out, *arguments, **environment):
    return subprocess.run(
        ["bash", "benchmarks/on_gpu.sh", *arguments],
        cwd=ROOT,
        env=os.environ | {"OUT": str(out), "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )


def test_dry_run_of_every_stage(tmp_path):
    result = on_gpu(tmp_path, "--dry-run")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    summary = (tmp_path / "summary.txt").read_text()
    assert [line.split()[:2] for line in summary.splitlines()[-len(STAGES) :]] == [[s, "ok"] for s in STAGES]
    assert summary in result.stdout[-2000:]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 16e6
    with tarfile.open(tmp_path / "build.tar.gz") as archive:
        assert b"pip install --no-build-isolation --no-deps" in archive.extractfile("build/log.txt").read()
    with tarfile.open(tmp_path / "kernels.tar.gz") as archive:
        names = archive.getnames()
    assert "kernels/log.txt" in names
    assert any(name.endswith("operation-bc-10-4-8-2-float32.json") for name in names)


def test_a_stage_that_fails_is_named_and_the_rest_go_on(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *densenet_fast.info*) exit 3;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    result = on_gpu(tmp_path / "out", "--dry-run", "build", "tune", PYTHON=str(python))
    assert result.returncode == 1
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()[-2:]
    assert "FAILED (exit code 3)" in lines[0]
    assert "ok" in lines[1]


def test_an_unknown_stage_is_refused(tmp_path):
    result = on_gpu(tmp_path, "bensh")
    assert result.returncode == 2
    assert "unknown stage: got 'bensh', expected some of build tests" in result.stderr


@pytest.mark.parametrize(
    ("required", "body", "passes"),
    [
        ("eager", "pass", True),
        ("eager", "pytest.skip('no GPU')", False),
        ("", "pytest.skip('no GPU')", True),
        ("plane", "pass", False),
    ],
)
def test_required_backends_turn_skips_into_failures(tmp_path, required, body, passes):
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    {body}\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", str(tmp_path / "test_it.py")],
        cwd=ROOT,
        env=os.environ | {"DENSENET_FAST_REQUIRE": required},
        capture_output=True,
        text=True,
    )
    assert (result.returncode == 0) == passes, result.stdout
    assert passes or "DENSENET_FAST_REQUIRE" in result.stdout + result.stderr
