"""The command `densenet-fast`, also `python -m densenet_fast`: finds a command's function, which does the rest.

A command takes its arguments as a list and returns its exit status: 0, 1 where it refuses (`Refused`), 2 for arguments
that are wrong (`Parser`). It is imported when it is called.
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ._version import __version__

PROGRAM = "densenet-fast"
COMMANDS = {
    "fit": ("densenet_fast.train.commands:fit", "train a net by a recipe, or go on with a run"),
    "recipes": ("densenet_fast.train.commands:list_recipes", "list the paper's experiments, which fit can do"),
    "validate": ("densenet_fast.train.commands:validate", "top-1 and top-5 error of a trained net"),
    "predict": ("densenet_fast.train.commands:predict", "name the classes of image files"),
    "nets": ("densenet_fast.nets:main", "list the published nets with their parameters and multiply-adds"),
    "plan": ("densenet_fast.plan.command:main", "tell what a training step needs: bytes, largest batch, least time"),
    "analyse": ("densenet_fast.analyse.command:main", "show how strongly a trained net's layers are connected"),
}


class Refused(ValueError):
    """What a command cannot do, in one sentence: it is printed without a traceback, and the exit status is 1."""


class Parser(argparse.ArgumentParser):
    """A command's arguments; wrong ones are one sentence, and the exit status is 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def count(argument: str) -> int:
    """The type of an argument that is a number of things."""
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"got {argument!r}, expected a number of at least 1")
    return int(argument)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: those of the process) name; returns the exit status."""
    parser = Parser(
        prog=PROGRAM,
        description="DenseNets with one concatenation buffer per dense block.",
        epilog="commands:\n" + "".join(f"  {name:<10} {line}\n" for name, (_, line) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"densenet_fast {__version__}")
    parser.add_argument("command", metavar="command", choices=COMMANDS, help="one of those below")
    of_it = parser.add_argument("arguments", nargs=argparse.REMAINDER, help=f"of the command: {PROGRAM} command --help")
    of_it.required = False  # which Python before 3.12 takes it for
    options = parser.parse_args(arguments)
    module, _, function = COMMANDS[options.command][0].partition(":")
    try:
        status = getattr(import_module(module), function)(options.arguments)
        sys.stdout.flush()
        return status
    except Refused as refusal:
        print(f"{PROGRAM} {options.command}: {refusal}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # to which Python writes what is left
        if error.errno == errno.ENOSPC:  # else who read the output has read enough
            print(f"{PROGRAM} {options.command}: it could not write on: {error.strerror}", file=sys.stderr)
        return 1
