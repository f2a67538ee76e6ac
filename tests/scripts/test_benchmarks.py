"""The benchmarks on lida-tiny run to the end beside diffusers + peft, and write what they measured."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.full
@pytest.mark.parametrize("command", ["speed.py --pairs 1", "row.py --pairs 1 --seeds 1", "switching.py --pairs 1"])
def test_a_benchmark_writes_its_rows(command, tmp_path):
    name, *flags = command.split()
    found = tmp_path / "rows.json"
    subprocess.run([sys.executable, ROOT / "tests" / "benchmarks" / name, *flags, "--json", found], check=True)
    rows = json.loads(found.read_text())["rows"]
    assert rows and all(row["lida"] > 0 and row["peer"] > 0 for row in rows)
