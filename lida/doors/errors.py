"""How lida refuses bad input: one line with what, where, the value and the cure."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

SHOWN = 200  # faults at most that run() prints


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line and says what would help.

    Several faults of one input are told together, each a message: `InputError(*faults)`.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def output_folder(path: str | Path) -> Path:
    """The folder, made if need be; raises InputError, before any long work, where nothing can be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".writable").touch()
        (path / ".writable").unlink()
    except OSError as error:
        raise InputError(f"--output_dir {path}: {error.strerror}; give a folder that can be written to") from None
    return path


def run(main: Callable[[], None]) -> None:
    """Run a script's main(); an InputError ends it with a line a fault and exit code 2, as argparse's own errors do.

    A warning is one line too.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print("warning:", message, file=sys.stderr)
        try:
            main()
        except InputError as error:
            for fault in error.args[:SHOWN]:
                print("error:", " ".join(str(fault).split()), file=sys.stderr)  # what a library says may have line breaks
            if len(error.args) > SHOWN:
                print(f"error: ... and {len(error.args) - SHOWN} more", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
