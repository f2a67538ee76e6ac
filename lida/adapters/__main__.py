"""The command line of adapters: `python -m lida.adapters`."""

from lida.adapters.adapter import main
from lida.doors.errors import run

if __name__ == "__main__":
    run(main)
