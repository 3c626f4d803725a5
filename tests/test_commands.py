"""docs/commands.md shows what the commands print, in a folder with a `checkpoint.pth`. `python -m tests.test_commands`
writes it anew."""

import contextlib
import io
import os
import re
import shlex
import tempfile
from pathlib import Path

import torch

import densenet_fast
from densenet_fast import cli

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def printed(command: str) -> str:
    """What a command prints on both streams, and its exit status if that is not 0."""
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.redirect_stderr(found):
        try:
            status = cli.main(shlex.split(command)[1:])
        except SystemExit as exit_:
            status = exit_.code
    return found.getvalue() + (f"[exit status {status}]\n" if status else "")


def block(found: re.Match[str]) -> str:
    """A console block with what its commands print now."""
    commands = re.findall(r"^\$ (.*)$", found[1], re.MULTILINE)
    return "```console\n" + "".join(f"$ {command}\n{printed(command)}" for command in commands) + "```"


def shown(page: str, folder: Path) -> str:
    """The page with what its commands print in `folder`."""
    torch.manual_seed(0)
    torch.save(densenet_fast.create("densenet_bc_40_12").state_dict(), folder / "checkpoint.pth")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CONSOLE.sub(block, page)
    finally:
        os.chdir(before)


def test_the_page_shows_what_the_commands_print(tmp_path):
    page = PAGE.read_text()
    assert shown(page, tmp_path) == page


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(shown(PAGE.read_text(), Path(folder)))
