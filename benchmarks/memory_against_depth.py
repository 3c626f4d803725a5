"""The picture of what a training step keeps per image as a DenseNet-BC grows deeper."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import densenet_fast

from .memory import measure

LAYERS_PER_BLOCK = (6, 11, 16, 21, 26, 31, 36, 41)  # depths 40 to 250; the paper has 40, 100, 190 and 250
BATCH = 1


def depth(layers: int) -> int:
    """Depth of DenseNet-BC of three blocks as the paper counts it: convolutions and the classifier."""
    return 6 * layers + 4


def kept_per_image(layers: int, device: torch.device, backend: str, efficient: bool) -> float:
    """MB that DenseNet-BC (three blocks, k=12) keeps per 32x32 image after the forward."""
    model = densenet_fast.DenseNet(12, (layers,) * 3, efficient=efficient, backend=backend).to(device)
    x = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    return measure(model, x).live / BATCH / 1e6


def draw(out: Path, device: torch.device, backend: str, machine: str) -> Path:
    """Measure every depth and write memory_against_depth.png into `out`; returns its path."""
    curves = {
        "stock (torch.cat, modules): quadratic": ("plain", False, "#b5482a", "s"),
        "densenet_fast: linear": (backend, False, "#1f6fb4", "o"),
        "densenet_fast, efficient=True: linear": (backend, True, "#12908e", "D"),
    }
    depths = [depth(layers) for layers in LAYERS_PER_BLOCK]
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    with tqdm(total=len(curves) * len(depths), desc="memory against depth", unit="net") as bar:
        for label, (variant, efficient, color, marker) in curves.items():
            kept = []
            for layers in LAYERS_PER_BLOCK:
                kept.append(kept_per_image(layers, device, variant, efficient))
                bar.update()
            axes.plot(depths, kept, color=color, marker=marker, markersize=5, linewidth=2, label=label, clip_on=False)
            axes.annotate(
                f"{kept[-1]:.3g} MB",
                (depths[-1], kept[-1]),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=color,
                fontweight="bold",
            )
    figure.suptitle("What a training step keeps per image", x=0.07, ha="left", fontweight="bold")
    axes.set_title("DenseNet-BC, three blocks, k=12, 32x32 images, float32", loc="left", fontsize=9, color="dimgray")
    axes.set_xlabel("depth (layers)")
    axes.set_ylabel("memory kept after the forward (MB per image)")
    axes.legend(frameon=False, loc="upper left")
    axes.set_xticks(depths)
    axes.set_xlim(right=depths[-1] + 5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(machine, fontsize=7, color="gray")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "memory_against_depth.png"
    figure.savefig(path)
    return path
