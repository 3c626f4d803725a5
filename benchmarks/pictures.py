"""The pictures: memory against depth, throughput against the batch, time by operation against its floors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .rounds import spread

Contents = dict[str, Any]

DEPTH, BATCH, OPERATION = "memory_against_depth.png", "throughput_against_batch.png", "time_by_operation.png"
TITLES = {
    DEPTH: "What a training step keeps per image, against depth",
    BATCH: "Training throughput against the batch",
    OPERATION: "Time of a step by operation, against its floors",
}
GROUPS = {DEPTH: "depth", BATCH: "batch", OPERATION: "operation"}

COLORS = {"torchvision": "#b5482a", "native": "#1f6fb4", "triton": "#7a4fb0", "eager": "#8a8a8a"}


def available(groups: Sequence[Contents]) -> list[tuple[str, str]]:
    """(file name, title) of the pictures that these results can make."""
    present = {contents["group"] for contents in groups}
    return [(name, title) for name, title in TITLES.items() if GROUPS[name] in present]


def draw(groups: Sequence[Contents], out: Path) -> list[Path]:
    """Draw each picture from the first results that have it, into `out`; returns the paths."""
    painters = {DEPTH: _depth, BATCH: _batch, OPERATION: _operations}
    paths = []
    for name, title in available(groups):
        contents = next(c for c in groups if c["group"] == GROUPS[name])
        paths.append(save(painters[name](contents), title, _machine(contents), out / name))
    return paths


def save(figure: Figure, title: str, machine: str, path: Path) -> Path:
    figure.suptitle(title, x=0.02, ha="left", fontweight="bold")
    figure.supxlabel(machine, fontsize=7, color="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _machine(contents: Contents) -> str:
    facts = contents["machine"]
    return f"{facts['model']}, torch {facts['torch']}, {facts['date']}, commit {facts['commit']}"


def _workload(contents: Contents, batch: bool = True) -> str:
    settings = contents["settings"]
    size = f", batch {settings['batch']}" if batch else ""
    return f"{settings['model']}, {settings['image']}x{settings['image']}{size}, {settings['dtype']}"


def fit(x: Sequence[float], y: Sequence[float], degree: int) -> tuple[np.ndarray, float]:
    """Least-squares polynomial and its R squared."""
    coefficients = np.polyfit(x, y, degree)
    residual = np.square(np.polyval(coefficients, x) - y).sum()
    return coefficients, float(1 - residual / np.square(y - np.mean(y)).sum())


class Curve(NamedTuple):
    color: str
    degree: int  # of the polynomial that is fitted
    points: Mapping[float, float]  # bytes per image by depth


CURVES = {  # colour and degree, by what is kept
    "stock": (COLORS["torchvision"], 2),
    "stock, checkpointed": ("#d99a3d", 1),
    "ours": (COLORS["native"], 1),
    "ours, efficient": ("#12908e", 1),
}


def memory_against_depth(curves: Mapping[str, Curve]) -> Figure:
    """Points and fitted polynomials with their R squared, by label."""
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_title("DenseNet-BC, three blocks, k=12, 32x32 images", loc="left", fontsize=9, color="dimgray")
    for label, (color, degree, points) in curves.items():
        x, y = np.array(list(points)), np.array(list(points.values())) / 1e6
        coefficients, r2 = fit(x, y, degree)
        shape = "quadratic" if degree == 2 else "linear"
        fine = np.linspace(x.min(), x.max(), 200)
        axes.plot(fine, np.polyval(coefficients, fine), color=color, linewidth=1.5, alpha=0.7)
        axes.plot(x, y, "o", color=color, markersize=5, label=f"{label}: {shape} fit, R² = {r2:.5f}", clip_on=False)
        axes.annotate(
            f"{y[-1]:.3g} MB",
            (x[-1], y[-1]),
            xytext=(8, -3),
            textcoords="offset points",
            va="bottom",
            color=color,
            fontweight="bold",
        )
    axes.set_xlabel("depth (layers)")
    axes.set_ylabel("memory kept after the forward (MB per image)")
    axes.set_ylim(bottom=0)
    _finish(axes)
    return figure


def _depth(contents: Contents) -> Figure:
    measured = {r["variant"] for r in contents["records"] if r["live"]}
    best = next(backend for backend in ("native", "triton", "eager") if backend in measured)
    shown = {
        "torchvision": CURVES["stock"],
        "torchvision-efficient": CURVES["stock, checkpointed"],
        best: CURVES["ours"],
        f"{best}-efficient": CURVES["ours, efficient"],
    }
    curves = {}
    for variant, (color, degree) in shown.items():
        lines = [r for r in contents["records"] if r["variant"] == variant and r["live"] and r["phase"] != "forward"]
        if lines:
            curves[lines[0]["label"]] = Curve(color, degree, {r["x"]: r["live"] / r["batch"] for r in lines})
    return memory_against_depth(curves)


def _batch(contents: Contents) -> Figure:
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_title(
        f"{_workload(contents, batch=False)}; bars: p20-p80",
        loc="left",
        fontsize=9,
        color="dimgray",
    )
    labels = dict.fromkeys((r["variant"], r["label"]) for r in contents["records"] if r["seconds"])
    for variant, label in labels:
        lines = [r for r in contents["records"] if r["variant"] == variant and r["phase"] == "forward+backward"]
        lines = [r for r in lines if r["seconds"]]
        speeds = np.array([[r["batch"] / t for t in spread(r["seconds"])] for r in lines]).T
        axes.errorbar(
            [r["x"] for r in lines],
            speeds[0],
            yerr=[speeds[0] - speeds[2], speeds[1] - speeds[0]],
            color=COLORS[variant.split("-")[0]],
            linestyle="--" if variant.endswith("-graph") else "-",
            marker="o",
            markersize=5,
            capsize=3,
            label=label,
        )
    points = sorted({r["x"] for r in contents["records"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(points, [str(x) for x in points])
    axes.set_xlabel("batch (images)")
    axes.set_ylabel("training throughput (images per second)")
    axes.set_ylim(bottom=0)
    _finish(axes, legend="lower right")
    return figure


def _operations(contents: Contents) -> Figure:
    records = [r for r in contents["records"] if r["seconds"]]
    backends = list(dict.fromkeys(r["variant"] for r in records))
    times = {(r["case"], r["variant"]): spread(r["seconds"]).median * 1000 for r in records}
    cases = sorted({r["case"] for r in records}, key=lambda c: max(times.get((c, b), 0) for b in backends))
    figure = Figure(figsize=(8, 1.6 + 0.42 * len(cases)), dpi=150, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(backends)
    for i, backend in enumerate(backends):
        rows = [j + (len(backends) - 1 - 2 * i) * height / 2 for j, c in enumerate(cases) if (c, backend) in times]
        widths = [times[c, backend] for c in cases if (c, backend) in times]
        axes.barh(rows, widths, height, color=COLORS[backend], label=f"densenet_fast {backend}")
    cost = {r["case"]: r for r in records}
    ceilings = contents["ceilings"]
    floors = {
        "byte floor: bytes at copy speed": ("black", "bytes", "copy_bytes_per_s"),
        "arithmetic at matmul speed": ("#d99a3d", "flops", "matmul_flops_per_s"),
    }
    for label, (color, what, rate) in floors.items():
        x = [cost[c][what] / ceilings[rate] * 1000 for c in cases]
        axes.vlines(
            x, np.arange(len(cases)) - 0.45, np.arange(len(cases)) + 0.45, color=color, linewidth=2, label=label
        )
    copy, matmul = ceilings["copy_bytes_per_s"] / 1e9, ceilings["matmul_flops_per_s"] / 1e9
    axes.set_title(
        f"{_workload(contents)}; in the same run copy {copy:.0f} GB/s, matmul {matmul:.0f} GFLOP/s",
        loc="left",
        fontsize=9,
        color="dimgray",
    )
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.set_xlabel("all calls of one step (milliseconds)")
    _finish(axes, grid="x", legend="lower right")
    return figure


def _finish(axes: Axes, grid: str = "y", legend: str = "upper left") -> None:
    axes.legend(frameon=False, loc=legend, fontsize=8)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
