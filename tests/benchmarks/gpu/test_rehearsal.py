"""`python -m benchmarks.gpu first` rehearsed on the CPU with a crash, a hang and a wrong result planted: all else is
kept, the summary names the faults, and the report makes its tables from what was measured."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.gpu import collect, rehearsal, settings, smoke
from benchmarks.gpu.__main__ import SECONDS
from densenet_fast import backends

ROOT = Path(__file__).parents[3]
IGNORED = {".git", "build", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", ".venv"}
pytestmark = pytest.mark.skipif(
    backends.why_unavailable("native", torch.device("cpu")) is not None, reason="the compiled library was not built"
)


def tree() -> dict[str, int]:
    """Every file of the checkout but caches, and when it was written."""
    found = {}
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in IGNORED]
        found |= {f"{folder}/{name}": os.stat(f"{folder}/{name}").st_mtime_ns for name in files}
    return found


def with_mark(mark: str) -> list[str]:
    """Processes that have a variable in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


class Rehearsed:
    def __init__(self, folder: Path):
        self.out, self.home = folder / "out", folder / "home"
        self.home.mkdir()
        self.mark = f"REHEARSAL={folder}"
        name, _, value = self.mark.partition("=")
        environment = {k: v for k, v in os.environ.items() if k not in ("TMPDIR", "TRITON_INTERPRET", "XDG_CACHE_HOME")}
        environment |= {"OUT": str(self.out), "HOME": str(self.home), name: value}
        self.before = tree()
        command = [sys.executable, "-m", "benchmarks.gpu", "first", "--rehearse"]
        self.result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (self.out / "first.txt").exists(), self.result.stdout[-3000:] + self.result.stderr[-3000:]
        self.lines = collect.read(self.out / "first.jsonl")
        self.summary = (self.out / "first.txt").read_text()


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> Rehearsed:
    return Rehearsed(tmp_path_factory.mktemp("rehearsal"))


def faults(lines):
    told = [line for line in lines if line["kind"] != "step"]
    return [line for line in told if line.get("verdict") in ("wrong", "failed", "dead", "hung")]


def test_the_summary_names_what_was_planted_and_nothing_else(rehearsed):
    assert rehearsed.result.returncode == 1
    assert rehearsed.result.stdout.endswith(rehearsed.summary)
    _, _, told = rehearsed.summary.partition("to mend:\n")
    assert sorted(line.split()[:4] for line in told.splitlines()) == [
        ["dead:", "smoke", "eager", "head_fwd"],
        ["dead:", "turn", "eager", "training"],
        ["hung:", "smoke", "eager", "channel_stats"],
        ["wrong:", "smoke", "native", "transition_fwd"],
    ]
    assert "killed by SIGABRT" in told
    assert "1 like it" in told  # the wrong operation is so at both shapes


def test_all_else_is_kept(rehearsed):
    steps = [line["step"] for line in rehearsed.lines if line["kind"] == "step"]
    assert steps == ["preflight", "background", *SECONDS]
    assert Counter(line["verdict"] for line in faults(rehearsed.lines)) == {"hung": 1, "wrong": 2, "dead": 2}
    of = settings.rehearsal(rehearsed.out)
    planned = [case for b in of.backends for name in smoke.NAMES for case in smoke.cases(of, b, name)]
    checked = [line for line in rehearsed.lines if line["kind"] == "smoke"]
    assert len(checked) == len(planned)
    assert sum(line["verdict"] == "right" for line in checked) == len(planned) - 4
    for workload in ("training 4", "training 2", "inference 4", "inference 3", "inference 1"):
        turns = [t for t in rehearsed.lines if t["kind"] == "turn" and t["workload"] == workload]
        assert [(t["variant"], t["round"]) for t in turns] == [
            (v, i) for i in range(3) for v in ("torchvision", "native", "eager")
        ]
    cut = [t["variant"] for t in rehearsed.lines if t["kind"] == "turn" and t["workload"] == "training 3"]
    assert Counter(cut) == {"torchvision": 3, "native": 3, "eager": 2}


def test_what_only_a_gpu_machine_has_is_said_to_be_left_out(rehearsed):
    told = {line["kind"] for line in rehearsed.lines if line.get("verdict") == "not run" and "GPU" in line["why"]}
    assert told == {"model", "sanitizer", "ncu", "outcome"}
    assert [line["verdict"] for line in rehearsed.lines if line["kind"] == "variants"] == ["right"]


def test_it_ends_in_time_and_leaves_no_process(rehearsed):
    assert max(line["at"] for line in rehearsed.lines) < 530
    assert with_mark(rehearsed.mark) == []


def test_nothing_is_written_outside_its_folders(rehearsed):
    assert tree() == rehearsed.before
    assert list(rehearsed.home.rglob("*")) == []
    files = [path for path in rehearsed.out.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(path.parent == rehearsed.out and path.stat().st_size < 16 << 20 for path in files)


def rates(text, label):
    """What stands behind a label in tables: the images per second."""
    return [float(line.split("|")[2].split()[0]) for line in text.splitlines() if line.startswith(f"| {label} |")]


def test_the_report_makes_its_tables_from_it(rehearsed, tmp_path):
    paths = collect.save(rehearsed.out, "first", tmp_path / "results")
    assert {path.suffix for path in paths} == {".json", ".jsonl", ".txt"}
    (tmp_path / "README.md").write_text(f"before\n{report.START}\n{report.END}\nafter\n")
    assert report.main(["--results", str(tmp_path / "results"), "--root", str(tmp_path)]) == 0
    readme, tables = (tmp_path / "README.md").read_text(), (tmp_path / "docs" / "benchmarks.md").read_text()
    training = json.loads(next(p for p in paths if p.name == "training-bc-10-4-8-4-float32.json").read_text())
    native = next(r for r in training["records"] if (r["variant"], r["phase"]) == ("native", "forward+backward"))
    assert len(native["seconds"]) == 3
    assert native["live"] > 0
    median = sorted(native["seconds"])[1]
    assert pytest.approx(4 / median, rel=0.01) in rates(readme, "densenet_fast native")
    assert pytest.approx(4 / median, rel=0.01) in rates(tables, "densenet_fast native")
    assert "batch 4, float32" in readme
    assert "batch 3, float32" in tables
    assert "FAILED: densenet_fast eager (bc-10-4): dead: killed by SIGABRT" in tables
    assert "| block_bwd | native |" in tables


def test_every_fault_is_planted():
    assert {fault.what for fault in rehearsal.FAULTS} == {"crash", "hang", "wrong"}
