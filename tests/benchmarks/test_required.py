"""DENSENET_FAST_REQUIRE: a machine that must prove something cannot pass by skipping it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .. import conftest

ROOT = Path(__file__).parents[2]
pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("required", "body", "passes"),
    [
        (["eager"], "pass", True),
        (["eager"], "pytest.skip('no GPU')", False),
        ([], "pytest.skip('no GPU')", True),
        (["plane"], "pass", False),
    ],
    ids=str,
)
def test_required_backends_turn_skips_into_failures(pytester, monkeypatch, required, body, passes):
    monkeypatch.setattr(conftest, "REQUIRED", required)
    pytester.makepyfile(f"import pytest\ndef test_it():\n    {body}\n")
    result = pytester.runpytest_inprocess("-p", conftest.__name__)
    told = [*result.outlines, *result.errlines]
    assert (result.ret == 0) == passes, told
    assert passes or any("DENSENET_FAST_REQUIRE" in line for line in told)


def test_the_environment_is_read():
    result = subprocess.run(
        [sys.executable, "-c", "from tests import conftest; print(conftest.REQUIRED)"],
        cwd=ROOT,
        env=os.environ | {"DENSENET_FAST_REQUIRE": "triton,native"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "['triton', 'native']", result.stderr
