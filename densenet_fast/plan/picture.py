"""The planner's picture: bytes of a step against the batch, and what is there."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .report import WAYS, Asked, Plan
from .units import text_of_bytes

POINTS = 16
STYLES = {
    "torchvision": ("tab:red", "-"),
    "torchvision, checkpointing": ("tab:orange", "--"),
    "densenet_fast": ("tab:blue", "-"),
    "densenet_fast, efficient": ("tab:green", "--"),
}


def draw(asked: Asked, path: str | Path) -> None:
    """Write the picture, in the format that the file's name ends with."""
    plan = Plan(asked)
    end = 2 * asked.batch if not asked.memory else max(asked.batch, plan.largest("densenet_fast")) * 1.25
    batches = sorted({max(1, round(end * i / POINTS)) for i in range(POINTS + 1)})
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in WAYS:
        colour, line = STYLES[name]
        axes.plot(batches, [plan.needed(name, n) / 1e9 for n in batches], line, color=colour, label=name)
    if asked.memory:
        axes.axhline(asked.memory / 1e9, color="black", linewidth=1, linestyle=":")
        axes.annotate(f"{text_of_bytes(asked.memory)} ", (batches[-1], asked.memory / 1e9), ha="right", va="bottom")
        axes.set_ylim(0, 1.6 * asked.memory / 1e9)
    axes.axvline(asked.batch, color="grey", linewidth=0.8, linestyle=":", label=f"a batch of {asked.batch}")
    axes.set_xlim(0, batches[-1])
    axes.set_xlabel("images in a step")
    axes.set_ylabel("GB of a training step in all")
    axes.set_title(f"{asked.net}, {asked.image}x{asked.image}, {asked.dtype}")
    axes.legend(loc="upper right", framealpha=1)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
