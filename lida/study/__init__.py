"""The study: does a face age, and is it still the same person? This needs the extra lida-aging[study].

`evaluate` paints people at many settings (`settings`, `rules`, `people`, `painting`), has the pictures judged (`judges`,
`measures`, `tradeoff`) and reports (`report`, `verdict`). Nothing outside this room imports it.
"""

from importlib.util import find_spec

from ..doors.errors import InputError


class NotInstalled(InputError, ImportError):
    """A package of the extra is missing: an error of one line, from the console command and from python -m."""

    name = __name__


for package in ("scipy", "jinja2", "matplotlib"):
    if find_spec(package) is None:
        raise NotInstalled(f"{package} is not installed, which lida.study needs: pip install lida-aging[study]")
