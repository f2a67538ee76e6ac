"""The README's example runs, and every room is described."""

import re
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


def test_the_public_names_are_listed_and_found():
    assert set(dir(lida)) == {*lida.__all__, "__version__"}
    assert all(getattr(lida, name).__name__ == name for name in lida.__all__)
