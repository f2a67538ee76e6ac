"""`python -m lida.adapters`: the command of lida/scripts/adapters.py."""

from lida.doors.errors import run
from lida.scripts.adapters import main

if __name__ == "__main__":
    run(main)
