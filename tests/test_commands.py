"""docs/commands.md shows what the commands print. `python -m tests.test_commands` writes it anew."""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

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


def block(shown: re.Match[str]) -> str:
    """A console block with what its commands print now."""
    commands = re.findall(r"^\$ (.*)$", shown[1], re.MULTILINE)
    return "```console\n" + "".join(f"$ {command}\n{printed(command)}" for command in commands) + "```"


def test_the_page_shows_what_the_commands_print(monkeypatch):
    monkeypatch.chdir(PAGE.parents[1])
    page = PAGE.read_text()
    assert CONSOLE.sub(block, page) == page


if __name__ == "__main__":
    os.chdir(PAGE.parents[1])
    PAGE.write_text(CONSOLE.sub(block, PAGE.read_text()))
