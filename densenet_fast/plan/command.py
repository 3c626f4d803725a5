"""`densenet-fast plan`: what a net's training step needs on a device that need not be there."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..cli import PROGRAM, Parser, Refused, count
from ..configurations import configuration
from ..installation import install
from .devices import DEVICES
from .report import DTYPES, Asked, report, text
from .units import parse_bytes


def main(arguments: Sequence[str]) -> int:
    """Print what the arguments ask for."""
    options = _parser().parse_args(arguments)
    device = DEVICES.get(options.gpu)
    asked = Asked(
        options.net,
        options.image or configuration(options.net).image,
        options.batch,
        options.dtype,
        options.gpu,
        options.memory or (device and int(device.memory)),
        options.bandwidth or (device and int(device.bandwidth)),
        options.states,
    )
    try:
        found = report(asked)
    except ValueError as error:
        raise Refused(str(error)) from error
    if options.picture is not None:
        draw(asked, options.picture)
    print(json.dumps(found, indent=1) if options.json else text(found))
    return 0


def draw(asked: Asked, path: str) -> None:
    """The picture, where there is matplotlib."""
    if not path or Path(path).is_dir():
        raise Refused(f"--picture: got {path!r}, expected a file")
    try:
        from .picture import draw as picture
    except ImportError as error:
        raise Refused(f"--picture: matplotlib is not installed ({error}); type: {install('matplotlib')}") from error
    try:
        picture(asked, path)
    except (OSError, ValueError) as error:
        raise Refused(f"--picture: got {path}, which cannot be drawn: {error}") from error


def _parser() -> Parser:
    parser = Parser(
        prog=f"{PROGRAM} plan",
        description="Parameters, multiply-adds, bytes of a training step by way of running it, the largest batch that "
        "fits, and the fewest milliseconds that moving the bytes takes. Nothing is computed and no device is needed.",
    )
    parser.add_argument(
        "net", type=_asked(configuration, keep=True), help=f"a name that `{PROGRAM} nets` lists or explains"
    )
    parser.add_argument("--image", type=count, metavar="SIDE", help="side of the images (default: that of the net)")
    parser.add_argument("--batch", type=count, default=64, help="images in a step (default: 64)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of activations; half precision as under autocast"
    )
    parser.add_argument(
        "--gpu", type=str.lower, choices=DEVICES, help="take memory and bandwidth of this device, and count for triton"
    )
    parser.add_argument("--memory", type=_asked(parse_bytes), metavar="BYTES", help="what is there, as 24GiB")
    parser.add_argument(
        "--bandwidth", type=_asked(parse_bytes), metavar="BYTES", help="a second, of a device without a name, as 900GB"
    )
    parser.add_argument(
        "--states",
        type=int,
        choices=(0, 1, 2),
        default=1,
        help="tensors that the optimizer keeps for each parameter: 1, the default, for SGD with momentum, 2 for Adam",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; bytes and multiply-adds as numbers")
    parser.add_argument("--picture", metavar="FILE", help="draw bytes against the batch (needs matplotlib)")
    return parser


def _asked(parse: Callable[[str], Any], keep: bool = False) -> Callable[[str], Any]:
    """An argument's type whose refusal argparse shows, behind the argument's name."""

    def convert(argument: str) -> Any:
        try:
            found = parse(argument)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("net: ")) from error
        return argument if keep else found

    return convert
