"""How lida refuses bad input: one line with what, where, the value and the cure."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line and says what would help."""


def run(main: Callable[[], None]) -> None:
    """Run a script's main(); an InputError ends it with that one line and exit code 2, as argparse's own errors do."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
