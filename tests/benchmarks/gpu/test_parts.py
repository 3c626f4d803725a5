"""What is brought along, what other programs print, and how the time is divided."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import machine
from benchmarks.gpu import bundle, kernels, sanitizer, settings, smoke
from benchmarks.gpu.__main__ import FAR_END, SECONDS, main, planned
from densenet_fast import backends

NCU = """==PROF== Connected to process 12
bn_relu_conv1x1_fwd
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"Section Name","Metric Name","Metric Unit","Metric Value","Rule Name","Rule Type","Rule Description"
"0","12","python3","127.0.0.1","kernel<1>(int)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","GPU Speed Of Light",\
"DRAM Throughput","%","61.20","","",""
"0","12","python3","127.0.0.1","kernel<1>(int)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","GPU Speed Of Light",\
"Duration","us","1,234.50","","",""
"0","12","python3","127.0.0.1","kernel<1>(int)","1","7","(256, 1, 1)","(132, 1, 1)","0","9.0","Occupancy",\
"","","","Occupancy","OPT","This is advice"
"1","12","python3","127.0.0.1","other","1","7","(64, 1, 1)","(8, 1, 1)","0","9.0","Occupancy",\
"Achieved Occupancy","%","50.0","","",""
"""


def test_nsight_compute_is_read_launch_by_launch():
    assert kernels.parse(NCU.splitlines()) == [
        {"kernel": "kernel<1>", "grid": "(132, 1, 1)", "DRAM Throughput": "61.20 %", "Duration": "1,234.50 us"},
        {"kernel": "other", "grid": "(8, 1, 1)", "Achieved Occupancy": "50.0 %"},
    ]


@pytest.mark.parametrize(
    ("code", "printed", "verdict", "told"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "right", "0 errors"),
        (86, "========= Invalid __global__ write\n========= ERROR SUMMARY: 2 errors", "wrong", "2 errors; Invalid"),
        (86, "========= RACECHECK SUMMARY: 1 hazard", "wrong", "1 hazard"),
        (1, "Traceback", "failed", "exit code 1"),
    ],
)
def test_the_sanitizer_is_understood(tmp_path, monkeypatch, code, printed, verdict, told):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n========= COMPUTE-SANITIZER\n{printed}\nEND\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = sanitizer.watch({"tool": "memcheck", "backend": "native"})
    assert found["verdict"] == verdict
    assert told in found.get("error", found.get("why"))


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_what_the_sanitizer_watches_runs(backend, capsys):
    if (missing := backends.why_unavailable(backend, torch.device("cpu"))) is not None:
        pytest.skip(missing)
    sanitizer.main(backend, torch.device("cpu"))
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(smoke.NAMES)  # shapes
    torch.set_grad_enabled(True)


PLANNED = """
import sys
from pathlib import Path
from benchmarks.gpu import background, settings
of = settings.on_a_gpu(Path(sys.argv[1]))._replace(shapes=settings.SHAPES[:1])
launches = background.launches_of(of, (90, 132))
print(len(launches), *sorted({launch.kernel.fn.__name__ for launch in launches}))
"""


def test_every_kernel_is_among_what_is_compiled_beforehand(tmp_path):
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PLANNED, str(tmp_path)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    count, *names = told.stdout.split()
    assert int(count) > 617  # those of one training step of DenseNet-121
    sources = (machine.ROOT / "densenet_fast" / "backends" / "triton").glob("*.py")
    assert names == sorted(
        name for s in sources for name in re.findall(r"^def (\w+_kernel)", s.read_text(), re.MULTILINE)
    )


def write_bundle(folder, **facts):
    told = {"commit": "abc", "package": machine.digest(*machine.MEASURED), "sources": machine.digest(*bundle.SOURCES)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(told | facts))


def test_a_library_of_other_sources_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    folder = tmp_path / "build" / "gpu-bundle"
    assert "no library was brought along in build/gpu-bundle" in bundle.use(folder)
    write_bundle(folder, sources="other")
    assert bundle.use(folder) == "the library brought along, of commit abc, is of other sources"
    write_bundle(folder)
    try:
        assert bundle.use(folder) is None
        assert bundle.densenet_fast.__path__[0] == str(folder / "densenet_fast")
    finally:
        bundle.forget()
    assert str(folder / "densenet_fast") not in bundle.densenet_fast.__path__


def test_the_commit_is_known_without_git(tmp_path, monkeypatch):
    def no_git(*_):
        raise OSError("no git")

    monkeypatch.setattr(machine, "_git", no_git)
    monkeypatch.setattr(machine, "CARRIED", tmp_path / "manifest.json")
    assert machine.commit() == "unknown"
    write_bundle(tmp_path)
    assert machine.commit() == "abc"
    write_bundle(tmp_path, package="other")
    assert machine.commit() == "abc-dirty"


def test_a_digest_is_of_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    seen = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        for old in tmp_path.glob("*.py"):
            old.unlink()
        (tmp_path / name).write_text(text)
        seen.add(machine.digest("."))
    assert len(seen) == 3
    (tmp_path / "_C.abi3.so").write_text("built")
    assert machine.digest(".") in seen


def test_steps_share_the_time_in_proportion(tmp_path):
    of = settings.rehearsal(tmp_path)
    first = planned("first", [], 530.0, of)
    assert [step.name for step in first] == ["preflight", "background", *SECONDS]
    assert [step.until for step in first] == sorted(step.until for step in first)
    assert first[-1].until == pytest.approx(530 - FAR_END)
    again = planned("again", ["operations", "smoke"], 150.0, of)
    assert [step.name for step in again[2:]] == ["smoke", "operations"]  # always in the order of `first`
    assert again[-1].until == pytest.approx(150 - FAR_END)


def test_the_page_tells_when_each_step_has_ended(tmp_path):
    page = (machine.ROOT / "docs" / "on_a_gpu.md").read_text()
    told = [(name, int(until)) for until, name in re.findall(r"^\| (\d+) \| (\w+) \|", page, re.MULTILINE)]
    assert told == [(s.name, round(s.until)) for s in planned("first", [], 530.0, settings.on_a_gpu(tmp_path))]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["first", "smoek"], "unknown step: got 'smoek', expected some of smoke, model"),
        (["more", "smoke"], "unknown step: got 'smoke', expected some of suite, tune"),
        (["again", "--operations", "head"], "unknown operation: got 'head', expected some of dense_block"),
    ],
)
def test_unknown_names_are_refused(arguments, told, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert told in capsys.readouterr().err
