"""The figure of the pipeline is of this code."""

import re
import sys

from conftest import ROOT

sys.path.append(str(ROOT / "docs"))
import pipeline


def test_the_pipeline_is_as_its_script_draws_it():
    assert (ROOT / "docs" / "pipeline.svg").read_text(encoding="utf-8") == pipeline.svg()


def test_the_files_that_it_names_exist():
    names = set(re.findall(r"[\w/]+\.py", pipeline.svg()))
    assert len(names) > 10 and all((ROOT / name).is_file() or (ROOT / "lida" / name).is_file() for name in names)
