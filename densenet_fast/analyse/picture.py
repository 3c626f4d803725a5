"""The heat maps, one for each block."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from . import Block

HEIGHT = 3.6  # inches of a heat map


def draw(blocks: Sequence[Block], path: str | Path) -> None:
    """Write the picture, in the format that the file's name ends with: columns are targets, rows sources, as in the
    paper's figure 5; transition and classifier stand in a frame."""
    widths = [max(len(block.targets), 6) for block in blocks]
    figure = Figure(figsize=(1.5 + min(20, 0.22 * sum(widths) + 1.3 * len(blocks)), HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(blocks), squeeze=False, width_ratios=widths)[0]
    for axes, block in zip(panels, blocks, strict=True):
        image = axes.imshow(
            block.relative().numpy(), cmap="jet", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        columns, rows = len(block.targets), len(block.sources)
        if not block.targets[-1].name.startswith("layer"):
            axes.add_patch(Rectangle((columns - 1.5, -0.5), 1, rows, fill=False, color="black", linewidth=2))
        last = block.targets[-1].name
        axes.set_title(block.name if last.startswith("layer") else f"{block.name}, {last}")
        step = max(1, columns // 6)
        axes.set_xticks(range(0, columns, step), range(1, columns + 1, step))
        step = max(1, rows // 6)
        axes.set_yticks(range(0, rows, step), ["input", *range(step, rows, step)])
        axes.set_xlabel("target layer")
    panels[0].set_ylabel("source layer")
    figure.colorbar(image, ax=list(panels), label="share of the column's largest", pad=0.01)
    figure.savefig(path, dpi=120)
