"""The console command `lida`: one subcommand for each script and tool."""

import sys
from importlib import import_module

from ..doors.errors import InputError, run

# name: (module with a main(), what it does)
COMMANDS = {
    "age": ("lida.scripts.infer", "age a face in a photograph, or paint from a prompt"),
    "train": ("lida.scripts.train_lora", "train an Age-LoRA or an Identity-LoRA"),
    "aaf": ("lida.data.aaf", "make a training folder of All-Age-Faces"),
    "album": ("lida.data.album", "make a training folder of photographs of one person"),
    "adapters": ("lida.scripts.adapters", "look at, convert, combine, compare and fuse adapters"),
    "app": ("lida.app.__main__", "age a face in a page of your browser"),
    "evaluate": ("lida.study.evaluate", "measure whether it ages, and whether it is still the same person"),
}


def command() -> None:
    """Run the subcommand that the command line names, or print what there is."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: lida COMMAND ...    (lida COMMAND --help has its flags)\n")
        print(*(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()), sep="\n")
    elif name not in COMMANDS:
        raise InputError(f"lida {name}: no such command; the commands are {', '.join(COMMANDS)}")
    else:
        sys.argv = [f"lida {name}", *sys.argv[2:]]
        import_module(COMMANDS[name][0]).main()


def main() -> None:
    """Run the console command, with errors as one line each."""
    run(command)
