"""The console command `lida`: what it lists, what it hands on to a subcommand, and a name that it does not know."""

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from lida.scripts import cli


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_a_command_all_are_listed(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["lida", *arguments])
    cli.main()
    usage, blank, *lines = capsys.readouterr().out.splitlines()
    assert usage == "usage: lida COMMAND ...    (lida COMMAND --help has its flags)" and not blank
    assert [line.split(maxsplit=1) for line in lines] == [[name, what] for name, (_, what) in cli.COMMANDS.items()]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_the_main_function_of_its_module_and_has_its_arguments(monkeypatch, name):
    module, called = cli.COMMANDS[name][0], []
    assert callable(import_module(module).main)
    main = lambda: called.append(list(sys.argv))  # noqa: E731
    monkeypatch.setattr(cli, "import_module", lambda wanted: SimpleNamespace(main=main) if wanted == module else None)
    monkeypatch.setattr(sys, "argv", ["lida", name, "a.png", "--ages", "60"])
    cli.main()
    assert called == [[f"lida {name}", "a.png", "--ages", "60"]]


def test_an_unknown_command_is_refused_with_the_names_of_all(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lida", "paint", "--ages", "60"])
    with pytest.raises(SystemExit) as error:
        cli.main()
    names = "age, train, aaf, album, adapters, app, evaluate"
    assert error.value.code == 2 and capsys.readouterr().err == (
        f"error: lida paint: no such command; the commands are {names}\n"
    )
