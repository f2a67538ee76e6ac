"""The study: does a face age, and is it still the same person? It needs the extra lida-aging[study].

`evaluate` paints people at many settings (`settings`, `rules`, `people`, `painting`), has the pictures judged (`judges`,
`measures`, `tradeoff`) and reports (`report`, `verdict`). `slider` fits the file that infer.py reads for --years. Nothing outside
of this room imports it.
"""

from importlib.util import find_spec

MISSING = [name for name in ("scipy", "jinja2", "matplotlib") if find_spec(name) is None]
if MISSING:
    raise ImportError(f"{MISSING[0]} is not installed, which lida.study needs: pip install lida-aging[study]", name=__name__)
