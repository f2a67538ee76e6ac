"""What the README says is so."""

import re

from conftest import ROOT


def test_the_example_runs(monkeypatch, tmp_path):
    code = re.search(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["oldest"].size == names["changed"].size == names["photo"].size and (tmp_path / "aged.png").is_file()
    assert names["loss"].isfinite() and all(layer.lora_up.grad is not None for layer in names["layers"].values())


def test_the_tree_names_every_module():
    tree = re.search(r"```\nlida/\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    listed = set(re.findall(r"^  (\w+\.py)", tree, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "lida").glob("*.py")} - {"__init__.py"}
