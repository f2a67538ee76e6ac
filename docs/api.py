"""Write docs/api: a page for the library and one for each of its rooms, made from their docstrings by pdoc."""

from pathlib import Path

import pdoc

import lida

DOCS = Path(__file__).parent
ROOMS = sorted(path.parent.name for path in DOCS.parent.glob("lida/*/__init__.py") if path.parent.name != "scripts")

for name in lida.__all__:  # names that are imported at their first use, which pdoc would not find
    setattr(lida, name, getattr(lida, name))
pdoc.render.configure(docformat="google")
pdoc.pdoc("lida", *(f"lida.{room}" for room in ROOMS), output_directory=DOCS / "api")
