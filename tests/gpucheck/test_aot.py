"""The gate for machine code can fail: on a kernel with the hazard, and on each of the other findings."""

import sys
from typing import NamedTuple

import pytest

pytest.importorskip("triton")

from tools.gpucheck.triton import aot
from tools.gpucheck.triton.compiler import Compiler

from .hazard import Naive


@pytest.fixture(scope="module")
def compiler():
    compiler = Compiler()
    yield compiler
    compiler.close()


def test_the_scan_finds_the_hazard(compiler):
    _, wrong = aot.findings(compiler.compile(Naive(safe=False)), 90)
    assert wrong
    assert all(finding.startswith("hazard: ") for finding in wrong)
    assert aot.findings(compiler.compile(Naive(safe=True)), 90)[1] == []


def test_the_gate_can_fail(compiler, monkeypatch):
    good = compiler.compile(Naive(safe=True))
    assert aot.findings(good._replace(ptx=""), 80)[1] == ["no tensor core"]
    assert aot.findings(good._replace(shared=164 << 10), 80)[1] == ["shared memory over 163 KiB"]
    monkeypatch.setattr(aot.sass, "usage", lambda cubin: aot.sass.Usage(255, 16, 1024))
    assert aot.findings(good, 80)[1] == ["16 bytes of stack"]
    monkeypatch.setattr(aot.sass, "usage", lambda cubin: aot.sass.Usage(255, 0, 1024))
    assert aot.findings(good._replace(shared=47 << 10), 80)[1] == []
    said = ["50176 bytes of shared memory, which Triton does not ask for"]
    assert aot.findings(good._replace(shared=48 << 10), 80)[1] == said
    assert aot.findings(good._replace(shared=48 << 10), 90)[1] == []
    monkeypatch.setattr(aot.sass, "usage", lambda cubin: aot.sass.Usage(255, 0, 2048))
    assert aot.findings(good._replace(shared=48 << 10), 90)[1] == said


def test_the_gate_finds_products_that_wait(compiler, monkeypatch):
    """Two stages copy behind the last product. What ptxas says: test_sass.py."""
    two = compiler.compile(Naive(safe=True, stages=2))
    assert aot.findings(two, 90)[1] == ["exposed: DEPBAR.LE SB0, 0x0"]
    monkeypatch.setattr(aot.sass, "assembled", lambda ptx: "(C7514) Potential Performance Loss: so in function 'k'")
    assert aot.findings(two, 90)[1] == ["serialised: C7514 so", "exposed: DEPBAR.LE SB0, 0x0"]


class Refused(NamedTuple):
    architecture: int
    kernel: str = "refused_kernel"

    def compile(self):
        raise ValueError("no such thing")


def test_a_compiler_s_error_crosses_over(compiler):
    with pytest.raises(RuntimeError, match=r"refused_kernel for sm_90: ValueError: no such thing"):
        compiler.compile(Refused(90))


def everything(architectures):
    return [aot.Item(Refused(a), f"for {a}") for a in architectures]


def test_what_does_not_compile_is_in_the_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aot", f"{__name__}:everything", "--arch", "80,90"])
    assert aot.main() == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        f"for {a}  does not compile: ValueError: no such thing" for a in (80, 90)
    ]
    assert last == "2 variants, 2 with findings"


def with_two_stages(reason):
    return lambda architectures: [aot.Item(Naive(safe=True, stages=2), "two stages", reason)]


@pytest.mark.parametrize(
    ("reason", "said", "status"),
    [
        ({}, ["exposed: DEPBAR.LE SB0, 0x0", "1 variants, 1 with findings"], 1),
        ({"exposed": "on purpose"}, ["exposed: on purpose; ok", "1 variants, 0 with findings"], 0),
        (
            {"exposed": "on purpose", "serialised": "to no purpose"},
            ["exposed: on purpose; ok", "nothing is serialised for this reason: to no purpose", "0 with findings"],
            1,
        ),
    ],
)
def test_the_table_gives_reasons_and_no_others(compiler, monkeypatch, capsys, reason, said, status):
    monkeypatch.setattr(sys, "argv", ["aot", f"{__name__}:reasoned", "--arch", "90"])
    monkeypatch.setattr(sys.modules[__name__], "reasoned", with_two_stages(reason), raising=False)
    monkeypatch.setattr(aot, "compiled", compiler.compile)
    assert aot.main() == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(end) for line, end in zip(lines, said, strict=True)] == [True] * len(said), lines
