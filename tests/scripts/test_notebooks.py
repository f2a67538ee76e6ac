"""The notebooks run from top to bottom, and were committed as they ran: with pictures, without warnings and local paths."""

import json
import re
from importlib.util import find_spec

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
needs_jupyter = pytest.mark.skipif(
    find_spec("nbclient") is None or find_spec("ipykernel") is None, reason="nbclient or ipykernel is not installed"
)


@needs_jupyter
@pytest.mark.filterwarnings("ignore:::(zmq|tornado|jupyter|nbclient|ipykernel|traitlets)")
@pytest.mark.parametrize("name", [pytest.param("lida", marks=pytest.mark.full), "research"])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    """In a folder of its own, which has links to what a clone has."""
    import nbformat
    from nbclient import NotebookClient

    for part in ("lida", "weights", "infer.py", "train_lora.py"):
        (tmp_path / part).symlink_to(ROOT / part)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code" and "sheet([" in cell.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran(path):
    text = path.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)) and len(text) < 1_500_000
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    shown = "".join("".join(output.get("text", "")) for output in outputs)
    assert not re.search(r"(?i)warning|(?<![\w.])/(work|root|home|tmp|usr|content)/", shown)


def test_both_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["lida", "research"]
