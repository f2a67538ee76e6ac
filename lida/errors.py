"""How lida refuses bad input: one line with what, where, the value and the cure."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line and says what would help."""


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
    """Run a script's main(); an InputError ends it with that one line and exit code 2, as argparse's own errors do.

    A warning is one line too.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print("warning:", message, file=sys.stderr)
        try:
            main()
        except InputError as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)  # what a library says may have line breaks
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
