"""How lida refuses bad input: one line that says what, where, the value and the cure."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

SHOWN = 200  # run() prints at most this many faults ...
LONGEST = 1000  # ... of about this many characters: a name from outside may have thousands
OUT_OF_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)  # PyTorch's RuntimeErrors


class InputError(ValueError):
    """An input that cannot be used. The message is one line: what, where, the value and the cure.

    `InputError(*faults)` reports several faults of one input, one message each.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


@contextmanager
def blamed(where: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Turn errors of this kind into an InputError whose line begins with `where`."""
    try:
        yield
    except kind as error:
        raise InputError(f"{where}{one_line(error)}") from error


def run(main: Callable[[], None]) -> None:
    """Run a script's main(). Errors of the input or of the system print one line for each fault and exit with code 2.

    Any other exception is a bug and keeps its traceback. LIDA_DEBUG=1 shows the traceback of every error.
    """
    with warnings.catch_warnings():
        if hasattr(sys.stdout, "reconfigure"):  # it is None if it is closed
            sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot encode must not end the program
        warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)
        try:
            main()
            print(end="", flush=True)  # a closed pipe is noticed here, not at exit
        except BrokenPipeError:
            assert sys.__stdout__ is not None  # it was open a moment ago
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # or Python would complain at exit
            sys.exit(141)  # as shells report SIGPIPE
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            faults = faults_of(error)
            if not faults:
                raise
            if os.environ.get("LIDA_DEBUG") == "1":
                traceback.print_exc()
            hidden = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
            for fault in [*faults[:SHOWN], *hidden]:
                tqdm.write(f"error: {one_line(fault)}", file=sys.stderr)  # on a line of its own, not behind a progress bar
            sys.exit(2)


def faults_of(error: Exception) -> Sequence[object]:
    """Return a message for each fault that the user can correct; none for a bug."""
    if isinstance(error, InputError):
        return error.args or ["the input cannot be used"]
    if isinstance(error, OSError):
        return [f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else error]
    if isinstance(error, UnicodeError):
        return [f"a text is not valid Unicode: {error}"]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return [f"out of memory; use a smaller batch, picture or model ({error})".replace(" ()", "")]
    return []


def one_line(message: object) -> str:
    """Return the message on one line, without line breaks, and without the middle of a very long one."""
    text = " ".join(str(message).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
