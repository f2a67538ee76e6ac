"""The README's example runs, and every room is described."""

import os
import re
import subprocess
import sys
from importlib import import_module

from conftest import ROOT

import lida


def test_the_example_of_the_readme_runs(monkeypatch, tmp_path):
    code = re.search(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["oldest"].size == names["changed"].size == names["photo"].size and (tmp_path / "aged.png").is_file()
    assert names["loss"].isfinite() and all(layer.lora_up.grad is not None for layer in names["layers"].values())


def test_every_room_is_named_in_the_library_and_has_a_paragraph_of_its_own():
    """`import lida` shows where to look, and each room's first lines say what lives there."""
    rooms = {path.parent.name for path in (ROOT / "lida").glob("*/__init__.py")} - {"scripts"}
    assert set(re.findall(r"\b[a-z]+\b", lida.__doc__)) >= rooms
    assert all(len(import_module(f"lida.{room}").__doc__) > 80 for room in rooms)


def test_it_is_imported_from_a_folder_that_holds_the_clone(tmp_path):
    """An empty folder `lida` in the working directory, such as a clone's, does not hide the installed library."""
    (tmp_path / "lida").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import lida; print(lida.__file__)"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(ROOT / "lida" / "__init__.py")


def test_the_public_names_are_listed_and_found():
    assert set(dir(lida)) == {*lida.__all__, "__version__"}
    assert all(getattr(lida, name).__name__ == name for name in lida.__all__)
