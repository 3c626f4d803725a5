"""`densenet-fast analyse`: what the layers of a trained net make of the features before them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ..cli import PROGRAM, Parser, Refused
from ..installation import install
from . import Block, blocks, load

IN_USE = 0.25  # of the strongest connection of a target
HEADER = ("block", "target", "source", "channels", "mean_abs_weight", "of_the_column_s_largest")


def main(arguments: Sequence[str]) -> int:
    """Analyse the checkpoint that the arguments name."""
    parser = Parser(
        prog=f"{PROGRAM} analyse",
        description="Connection strengths of a trained DenseNet (Huang et al. 2017, figure 5): the mean absolute "
        "weight of every layer, transition and classifier on what each earlier layer of the block has added. Prints a "
        "table; writes all of them as CSV, and the heat maps as PNG where matplotlib is installed.",
    )
    parser.add_argument("checkpoint", help="a state dict, a Lightning checkpoint or a .safetensors file, with "
                        "torchvision's, timm's or our keys")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to write (default: here)")
    options = parser.parse_args(arguments)
    try:
        found = blocks(load(options.checkpoint))
    except ValueError as error:
        raise Refused(str(error)) from error
    name = Path(options.checkpoint).stem
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        write(found, options.out / f"{name}-strengths.csv")
        drawn = draw(found, options.out / f"{name}-strengths.png")
    except OSError as error:
        raise Refused(f"--out: got {options.out}, where nothing can be written: {error.strerror}") from error
    print(text(found))
    print(f"\nwritten: {options.out / name}-strengths.csv{' and .png' if drawn else ''}")
    if not drawn:
        print(f"no heat maps: matplotlib is not installed; type: {install('matplotlib')}")
    return 0


def draw(found: Sequence[Block], path: Path) -> bool:
    """Write the heat maps; False where there is no matplotlib."""
    try:
        from .picture import draw as picture
    except ImportError:
        return False
    picture(found, path)
    return True


def write(found: Sequence[Block], path: Path) -> None:
    """A line for each connection."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(HEADER)
        for block in found:
            strengths, relative = block.strengths(), block.relative()
            for column, target in enumerate(block.targets):
                for row in range(column + 1):
                    value, share = (float(of[row, column]) for of in (strengths, relative))
                    rows.writerow(
                        (block.name, target.name, block.names[row], block.sources[row], f"{value:.6g}", f"{share:.4f}")
                    )


def text(found: Sequence[Block]) -> str:
    """The table of connection strengths: of each block's layers, and of what reads all of it, the mean strength on the
    block's input, on the last features added and on all others, and how many connections are in use."""
    lines = [f"{'mean absolute weight':<28}{'on input':>10}{'on last':>10}{'on others':>11}{'in use':>8}"]
    for block in found:
        strengths, relative = block.strengths(), block.relative()
        of_layers = [i for i, target in enumerate(block.targets) if target.name.startswith("layer")]
        groups = {f"{block.name}, {len(of_layers)} layers": of_layers}
        groups |= {f"{block.name}, {t.name}": [i] for i, t in enumerate(block.targets) if i not in of_layers}
        for name, columns in groups.items():
            parts = [
                [strengths[0, c] for c in columns],
                [strengths[c, c] for c in columns if c > 0],
                [strengths[r, c] for c in columns for r in range(1, c)],
            ]
            shown = [f"{float(sum(part)) / len(part):.4f}" if part else "-" for part in parts]
            used = [bool(relative[r, c] >= IN_USE) for c in columns for r in range(c + 1)]
            lines.append(f"{name:<28}{shown[0]:>10}{shown[1]:>10}{shown[2]:>11}{sum(used) / len(used):>8.0%}")
    lines.append(f"in use: connections of at least {IN_USE:.0%} of the strongest that their target has")
    return "\n".join(lines)
