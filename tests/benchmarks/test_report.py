"""The report, from records written by hand: every figure in it must be one of theirs."""

import json
import subprocess

import numpy as np
import pytest
import torch

from benchmarks import machine, pictures, report
from benchmarks.summary import summary

MACHINE = {"model": "Card X", "device": "cuda", "threads": 2, "load": 0.1, "python": "3", "date": "2026-01-02"}
MACHINE |= {"torch": "2.11.0", "commit": "unknown", "clocks": None}
SETTINGS = {"model": "densenet121", "image": 224, "batch": 4, "dtype": "float32", "allocator": "keep"}


def record(variant, seconds, **other):
    labels = {"torchvision": ("torchvision", "stock"), "timm": ("timm", "timm"), "resnet50": ("ResNet-50", "resnet50")}
    label, family = labels.get(variant, (f"densenet_fast {variant}", "ours"))
    made = {"case": "densenet121", "phase": "forward+backward", "variant": variant, "label": label, "family": family}
    made |= {"batch": 4, "x": None, "seconds": seconds, "live": 40_000_000, "peak": 80_000_000, "check": {}}
    return made | {"missing": None, "error": None, "dropped": 0, "others": 0.0} | other


def contents(records, group="training", **other):
    made = {
        "machine": MACHINE,
        "group": group,
        "setting": "s",
        "settings": SETTINGS,
        "ceilings": {},
        "records": records,
    }
    return made | other


TRAINING = contents(
    [
        record("torchvision", [0.2, 0.2, 0.4], live=400_000_000, peak=480_000_000),
        record("native", [0.1, 0.1, 0.2]),
        record("triton", [], missing="no such kernels"),
        record("eager", [], error="gradients errs by 1e-1, allowed 1e-6"),
        record("resnet50", [0.05, 0.05, 0.1], live=1, peak=1),
    ]
)


def test_a_table_gives_speed_ratio_and_memory_per_image():
    (table,) = report.tables(TRAINING)
    by_label = {row[0]: row for row in table.rows}
    assert list(by_label) == ["torchvision", "densenet_fast native", "ResNet-50"]
    assert by_label["densenet_fast native"][1:] == ["40", "-", "100 (100-160)", "2.00 (2.00-2.00)", "10.0", "20.0"]
    assert "| densenet_fast native | 40 | - | 100 (100-160) | 2.00 (2.00-2.00) | 10.0 | 20.0 |" in table.markdown()


def test_losses_name_every_peer_that_is_ahead():
    (faster,) = report.losses(TRAINING)
    assert faster.startswith("ResNet-50 is 2.00 (2.00-2.00) times as fast as densenet_fast native")
    slower = contents([record("torchvision", [0.1]), record("native", [0.2])])
    assert len(report.losses(slower)) == 1
    smaller = contents([record("torchvision", [0.3], peak=60_000_000), record("native", [0.2])])
    assert report.losses(smaller) == ["0.75 of our peak memory is enough for torchvision (densenet121, batch 4)"]
    assert report.losses(contents([record("torchvision", [0.3]), record("native", [0.2])])) == []


def test_losses_over_many_shapes_become_one_clause_with_the_worst():
    lines = [
        record(v, [s], case=c)
        for c, s0, s1 in [("A", 1, 2), ("B", 1, 3), ("C", 2, 1)]
        for v, s in [("torchvision", s0), ("timm", s0), ("native", s1)]
    ]
    (clause,) = report.losses(contents(lines, "shapes"))
    assert "in 2 of 3 comparisons, at worst torchvision is 3.00" in clause
    assert "(B, batch 4" in clause


def test_operations_are_held_against_the_eager_backend():
    lines = [
        record(v, [s], case="head_fwd", phase="operation", bytes=8_000_000, flops=0, calls=1)
        for v, s in [("native", 0.002), ("eager", 0.001)]
    ]
    made = contents(lines, "operation", ceilings={"copy_bytes_per_s": 16e9, "matmul_flops_per_s": 1e12})
    (table,) = report.tables(made)
    assert table.rows[0] == ["head_fwd", "native", "1", "2", "8", "4.0", "25%", "-", "-"]
    (clause,) = report.losses(made)
    assert "densenet_fast eager is 2.00" in clause


def test_notes_say_what_failed_what_is_missing_and_who_disturbed():
    notes = report.notes(TRAINING)
    assert "FAILED: densenet_fast eager (densenet121): gradients errs by 1e-1, allowed 1e-6" in notes
    assert "Not measured: triton (no such kernels); what --peers did not ask for." in notes
    disturbed = contents([record("torchvision", [1.0], dropped=3, others=0.5)])
    assert any(note.endswith("busy: 3.") for note in report.notes(disturbed))
    assert any(note.startswith("NOT A QUIET MACHINE: up to 0.50") for note in report.notes(disturbed))


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_figures_are_marked_once_kernels_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    git(tmp_path, "init")
    for name in ("csrc/cuda/kernel.cu", "csrc/cpu/kernel.cpp", "docs/text.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    measured = machine.commit()
    (tmp_path / "docs" / "text.md").write_text("2")
    git(tmp_path, "commit", "-am", "words")
    assert machine.changed_since(measured, "cuda") is False
    (tmp_path / "csrc" / "cuda" / "kernel.cu").write_text("2")
    assert machine.commit().endswith("-dirty")
    git(tmp_path, "commit", "-am", "kernel")
    assert machine.changed_since(measured, "cuda") is True
    assert machine.changed_since(measured, "cpu") is False
    (tmp_path / "csrc" / "cpu" / "kernel.cpp").write_text("2")
    git(tmp_path, "commit", "-am", "kernel of the CPU")
    assert machine.changed_since(measured, "cpu") is True
    assert machine.changed_since(machine.commit(), "cuda") is False
    assert machine.changed_since(machine.commit() + "-dirty", "cuda") is True
    assert machine.changed_since("unknown", "cuda") is None
    made = contents(TRAINING["records"], machine=MACHINE | {"commit": measured})
    assert report.caption(made).endswith("† the kernels have changed since")


def test_a_processor_is_told_with_its_threads_and_instructions():
    processor = MACHINE | {"model": "Processor Y", "device": "cpu"}
    for told, expected in (({}, ""), ({"instructions": "AVX512"}, ", AVX512")):
        caption = report.caption(contents([record("native", [0.1])], machine=processor | told))
        assert f"; Processor Y, 2 threads{expected}, load 0.1, " in caption


@pytest.mark.parametrize(("amx", "told"), [(False, ""), (True, " AMX")])
def test_a_processor_with_amx_is_another_machine(amx, told, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    found = machine.facts(torch.device("cpu"))["instructions"]
    assert found == torch.backends.cpu.get_cpu_capability() + told


@pytest.fixture
def root(tmp_path):
    (tmp_path / "README.md").write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    folder = tmp_path / "results" / "card-x"
    folder.mkdir(parents=True)
    depths = [
        record(v, [0.1], x=x, live=4 * (x * x if v == "torchvision" else 10 * x) * 1000)
        for v in ("torchvision", "native")
        for x in (10, 40, 100)
    ]
    operation = [record("native", [0.002], case="head_fwd", bytes=8, flops=1, calls=1)]
    ceilings = {"copy_bytes_per_s": 16e9, "matmul_flops_per_s": 1e12}
    groups = [
        TRAINING,
        contents(depths, "depth"),
        contents([record("native", [0.1, 0.2], x=x) for x in (1, 2)], "batch"),
        contents(operation, "operation", ceilings=ceilings),
        contents([record("native", [], largest=1234)], "largest-batch"),
    ]
    for made in groups:
        (folder / f"{made['group']}.json").write_text(json.dumps(made))
    return tmp_path


def run(root, *more):
    return report.main(["--root", str(root), "--results", str(root / "results"), *more])


def test_only_the_readme_s_section_is_replaced(root):
    assert run(root, "--check") == 1
    assert run(root) == 0
    text = (root / "README.md").read_text()
    assert text.startswith(f"before\n{report.START}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| densenet_fast native | 40 (2.00x) | 10.0 | - |" in text
    assert "from a GPU" not in text
    tables = (root / "docs" / "benchmarks.md").read_text()
    assert "2.00 (2.00-2.00)" in tables
    for name in (pictures.DEPTH, pictures.BATCH, pictures.OPERATION):
        assert f"]({name})" in tables
        assert (root / "docs" / name).stat().st_size > 10_000
    assert text.count(".png") == 1
    assert "1234" in tables
    assert run(root, "--check") == 0


def test_the_readme_s_table_is_stock_and_the_fastest_of_ours():
    steps = [("torchvision", 0.2), ("torchvision-efficient", 0.4), ("native", 0.2), ("eager", 0.1)]
    steps += [("native-efficient", 0.1), ("eager-efficient", 0.2), ("native-graph", 0.01), ("resnet50", 0.01)]
    training = contents([record(v, [s], live=4_000_000 * i) for i, (v, s) in enumerate(steps, 1)])
    inference = [record(v, [s], phase="inference") for v, s in [("torchvision", 0.1), ("eager", 0.05)]]
    other = contents([record("eager", [9.0], phase="inference")], "inference", settings=SETTINGS | {"batch": 1})
    default = contents(inference[:1], "inference", settings=SETTINGS | {"allocator": "default"})
    table = summary(training, [other, default, training, contents(inference, "inference")])
    assert [row[1:] for row in table.rows] == [
        ["20", "1.0", "40"],
        ["10 (0.50x)", "2.0", "as above"],
        ["40 (2.00x)", "4.0", "80 (2.00x)"],
        ["40 (2.00x)", "5.0", "as above"],
        ["400 (20.00x)", "7.0", "-"],
    ]


def test_the_readme_shows_the_largest_batch_of_each_machine():
    smaller = contents(TRAINING["records"], settings=SETTINGS | {"batch": 2})
    other = contents(TRAINING["records"], machine=MACHINE | {"model": "A", "device": "cpu"})
    text = report.readme([smaller, TRAINING, other], [])
    assert text.count("training, images/s") == 2
    assert "batch 2" not in text
    assert text.count("batch 4, float32; ") == 2


def test_the_readme_shows_machines_that_have_measured_today_s_kernels(monkeypatch):
    monkeypatch.setattr(machine, "changed_since", lambda commit, device: commit == "old")
    old, new = (MACHINE | {"model": f"Machine {name}", "commit": name} for name in ("old", "new"))
    narrow = contents(TRAINING["records"], machine=new, settings=SETTINGS | {"dtype": "bfloat16"})
    groups = [contents(TRAINING["records"], machine=old), narrow, contents(TRAINING["records"], machine=new)]
    text = report.readme(groups, [])
    assert "Machine new" in text
    assert "Machine old" not in text
    assert "bfloat16" not in text
    assert "Machine old" in report.readme(groups[:1], [])


def test_without_a_gpu_s_results_the_readme_says_so(root):
    for path in (root / "results").rglob("*.json"):
        made = json.loads(path.read_text())
        path.write_text(json.dumps(made | {"machine": MACHINE | {"device": "cpu"}}))
    run(root)
    assert "None of these figures is from a GPU" in (root / "README.md").read_text()


def test_without_results_nothing_is_written(tmp_path, capsys):
    assert report.main(["--root", str(tmp_path), "--results", str(tmp_path)]) == 1
    assert "expected those of" in capsys.readouterr().err


def test_gpus_and_large_images_come_first():
    cpu = contents([], machine=MACHINE | {"device": "cpu", "model": "A"})
    small = contents([], settings=SETTINGS | {"image": 32})
    assert report.ordered([cpu, small, TRAINING]) == [TRAINING, small, cpu]


def test_fits_tell_a_line_from_a_parabola():
    x = np.array([10.0, 40.0, 100.0, 400.0])
    assert pictures.fit(x, 3 * x + 1, 1)[1] > 0.999999
    assert pictures.fit(x, x**2, 1)[1] < 0.98
    assert pictures.fit(x, x**2, 2)[1] > 0.999999


def test_the_summary_of_a_gpu_has_graphs_and_the_compiled_net():
    """Its peers are not eager PyTorch alone."""
    lines = [
        record("torchvision", [0.4]),
        record("compile", [0.2], label="torchvision, torch.compile", family="stock"),
        record("native", [0.1]),
        record("triton", [0.2]),
        record("native-graph", [0.08], live=None, peak=None),
    ]
    rows = summary(contents(lines), []).rows
    assert [row[:3] for row in rows] == [
        ["torchvision", "10", "10.0"],
        ["torchvision, torch.compile", "20 (2.00x)", "10.0"],
        ["densenet_fast native", "40 (4.00x)", "10.0"],
        ["densenet_fast native-graph", "50 (5.00x)", "-"],
    ]
