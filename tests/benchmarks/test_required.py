"""DENSENET_FAST_REQUIRE: a machine that must prove something cannot pass by skipping it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
