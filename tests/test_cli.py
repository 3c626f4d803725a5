"""The command `densenet-fast`: what every command has."""

import os
import runpy

import pytest

from densenet_fast import cli


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"] if command is None else [command, "--help"])
    assert exit_.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: densenet-fast " + (command or ""))
    if command is None:
        assert all(f"\n  {name} " in told for name in cli.COMMANDS)


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_wrong_arguments_are_one_sentence(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--wrong"] if command is None else [command, "--wrong"])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("densenet-fast")
    assert told.count("\n") == 1


def test_only_a_command_is_required(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    assert "arguments are required: command; see densenet-fast --help\n" in capsys.readouterr().err


def test_a_refusal_is_one_sentence_without_traceback(monkeypatch, capsys):
    def refuse(arguments):
        raise cli.Refused(f"got {arguments}, expected nothing")

    monkeypatch.setattr("densenet_fast.nets.main", refuse)
    assert cli.main(["nets", "this"]) == 1
    assert capsys.readouterr().err == "densenet-fast nets: got ['this'], expected nothing\n"


def test_a_reader_that_has_read_enough(monkeypatch, capfd):
    """As `densenet-fast nets | head -1` has it."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("densenet_fast.nets.main", lambda arguments: print("all nets") or 0)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert cli.main(["nets"]) == 1
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_behind_the_output(monkeypatch, capfd):
    monkeypatch.setattr("densenet_fast.nets.main", lambda arguments: print("all nets") or 0)
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert cli.main(["nets"]) == 1
    told = "densenet-fast nets: it could not write on: No space left on device\n"
    assert capfd.readouterr() == ("", told)


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["fly"], 2)])
def test_the_module_is_the_command_and_passes_its_status_on(arguments, status, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["densenet-fast", *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("densenet_fast", run_name="__main__")
    assert exit_.value.code == status
    assert "densenet" in "".join(capsys.readouterr())
