"""How lida refuses bad input: one line with what, where, the value and the cure."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

SHOWN = 200  # run() prints at most this many faults
OUT_OF_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.I)  # PyTorch raises a RuntimeError


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: what, where, the value and the cure.

    `InputError(*faults)` reports several faults of one input, one message each.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def run(main: Callable[[], None]) -> None:
    """Run a script's main(). An error of the input or the system prints one line a fault and exits with code 2.

    Other exceptions are bugs and keep their traceback; LIDA_DEBUG=1 shows it for every error. Warnings are one line each.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print("warning:", one_line(message), file=sys.stderr)
        try:
            main()
            sys.stdout.flush()  # so that a closed pipe is noticed here
        except InputError as error:
            end(error.args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at exit
            sys.exit(141)  # as a shell reports SIGPIPE
        except OSError as error:
            end([f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error)])
        except UnicodeError as error:
            end([f"text that is not valid Unicode ({error})"])
        except KeyboardInterrupt:
            sys.exit(130)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
                raise
            end([f"out of memory; make the batch, the pictures or the model smaller ({error or 'no details are known'})"])


def end(faults: Sequence[object]) -> None:
    """Print the faults and exit with code 2, as argparse does for its own errors."""
    if os.environ.get("LIDA_DEBUG") == "1":
        traceback.print_exc()
    for fault in faults[:SHOWN]:
        print("error:", one_line(fault), file=sys.stderr)
    if len(faults) > SHOWN:
        print(f"error: ... and {len(faults) - SHOWN} more", file=sys.stderr)
    sys.exit(2)


def one_line(message: object) -> str:
    """Return a message without the line breaks that libraries put into theirs."""
    return " ".join(str(message).split())


def __getattr__(name: str):  # until everybody imports output_folder from .files
    if name == "output_folder":
        from .files import output_folder

        return output_folder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
