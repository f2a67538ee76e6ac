"""python -m lida.study.evaluate on a small random model: its files, going on, several processes, other judges, bad input."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, noise_image
from PIL import Image

SETTINGS = ("--identity_weights", "0.3", "1.0", "--age_weights", "0.2", "--rules", "sum", "ties:0.5")
FEW = ("--num_inference_steps", 2, "--strength", 0.5, "--ages", 20, 45, 70, "--seeds", 3, "--kind", "man", "--current_age", 40)
JUDGE = ("--age_judge", "grey_judges:ages", "--identity_judge", "sface", "grey_judges:thumbnail")


@pytest.fixture(scope="module")
def call(folder, adapters, demo):
    """Photograph, model and adapters."""
    photo, mask = demo
    person = ("--age_adapter", adapters / "age.safetensors", "--identity_adapter", adapters / "person.safetensors")
    return photo, "--mask", mask, "--pretrained_model_name_or_path", folder, *person, *FEW


@pytest.fixture(scope="module")
def evaluated(call, grey, tmp_path_factory):
    """A grid of four settings, painted once for the tests below, by two processes."""
    folder = tmp_path_factory.mktemp("evaluated")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "lida.study.evaluate")
    command = [sys.executable, *launcher, *call, *SETTINGS, *JUDGE, "--output_dir", folder]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{grey}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Of 5 settings, " in done.stdout and "sum 0.3 0.2" in done.stdout
    return folder


def table_of(folder) -> dict[str, dict]:
    with open(folder / "table.csv", encoding="utf-8") as file:
        return {line["setting"]: line for line in csv.DictReader(file)}


def test_the_table_has_the_settings_and_the_controls(evaluated, demo):
    table = table_of(evaluated)
    names = [
        "sum 0.3 0.2",
        "sum 1.0 0.2",
        "ties:0.5 0.3 0.2",
        "ties:0.5 1.0 0.2",
        "default",
        "do nothing",
        "prompt only",
        "age only",
    ]
    assert list(table) == [*names, "identity only", "random identity", "random age"]  # no ceiling: of no other photographs
    assert all(line["largest_change_outside"] == "0" for line in table.values())
    nothing = table["do nothing"]
    assert float(nothing["similarity_input"]) == pytest.approx(1) == float(nothing["similarity_back"])
    assert nothing["psnr_inside"] == "" == nothing["similarity_target"]
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "1 person, ages 20, 45, 70, 1 seed; flow_edit" in page
    assert "the photograph itself, counted as the aged picture" in page and page.rstrip().endswith("</html>")
    assert Image.open(evaluated / "grid.png").width > 2 * 128


def test_two_processes_paint_every_picture_once_and_one_goes_on(evaluated, call, script):
    """What is on disk stays, what was lost comes again, and other judges read the same pictures."""
    pictures = {path: np.asarray(Image.open(path), dtype=int) for path in (evaluated / "pictures").rglob("*.png")}
    times = {path: path.stat().st_mtime_ns for path in pictures}
    assert len(pictures) == 10 * 6
    lost = {path for path in pictures if path.parent.parent.name in ("sum 0.3 0.2", "random age")}
    for path in lost:
        path.unlink()
        (path.parent / "unit.json").unlink(missing_ok=True)
    judges = ("--age_judge", ROOT / "weights" / "age-estimator", "grey_judges:ages", "--identity_judge", "grey_judges:thumbnail")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two processes had: more threads sum in another order
    try:
        code, _, err = script("lida.study.evaluate", *call, *SETTINGS, *judges, "--output_dir", evaluated)
    finally:
        torch.set_num_threads(threads)
    assert code == 0, err
    for path, before in pictures.items():
        assert (path.stat().st_mtime_ns == times[path]) == (path not in lost)
        difference = np.abs(np.asarray(Image.open(path), dtype=int) - before)
        assert difference.mean() < 0.1  # other memory moves single pixels by a level or two
    line = table_of(evaluated)["do nothing"]
    assert float(line["similarity_input"]) == pytest.approx(1) and float(line["age_error:grey_judges:ages"]) >= 0
    assert float(line["age_error_real"]) >= 0 and line["age_error_real:grey_judges:ages"] == ""  # nobody has measured it


def test_pictures_made_otherwise_are_not_mixed_in(evaluated, call, script):
    code, _, err = script("lida.study.evaluate", *call, *SETTINGS, *JUDGE, "--output_dir", evaluated, "--strength", 1)
    assert code == 2 and "pictures of other settings" in err and "'strength': 0.5" in err and "another --output_dir" in err
    code, _, err = script("lida.study.evaluate", *call, *SETTINGS, *JUDGE, "--output_dir", evaluated, "--current_age", 41)
    assert code == 2 and "current was 40.0 and is 41.0" in err


def test_people_of_a_file_have_references_and_a_ceiling(folder, adapters, demo, grey, script, tmp_path):
    """The photograph stands for its own reference near 45; one without a face is left out by name."""
    noise_image(40, 40).save(tmp_path / "nobody.png")
    references = [{"photo": str(demo[0]), "age": 44}, {"photo": str(tmp_path / "nobody.png"), "age": 20}]
    person = {"photo": str(demo[0]), "mask": str(demo[1]), "age": 40, "references": references}
    (tmp_path / "people.jsonl").write_text(json.dumps(person), encoding="utf-8")
    few = ("--num_inference_steps", 2, "--strength", 0.5, "--ages", 45, "--seeds", 0, "--no_back")
    options = ("--people", tmp_path / "people.jsonl", "--pretrained_model_name_or_path", folder, *few, *JUDGE)
    options += ("--age_adapter", adapters / "age.safetensors", "--output_dir", tmp_path / "out")
    code, _, err = script("lida.study.evaluate", *options)
    assert code == 0 and "nobody.png: no face is found in it" in err
    line = table_of(tmp_path / "out")["ceiling"]
    assert line["pictures"] == "1" and float(line["similarity_input"]) > 0.9  # the same face under another mask
    code, _, err = script("lida.study.evaluate", *options, "--subject", "x")
    assert code == 2 and "--subject: is for PHOTOS" in err


@pytest.mark.parametrize(
    "options, said",
    [
        (("--setting", "a: rule=best"), "rule 'best'"), (("--ages", 20, 200), "'200' is not"), (("--rules", "best"), "rule 'best'"),
        (("--seeds", 1, 1), "one comes twice"), (("--age_judge", "os:nothing"), "cannot be imported"),
        (("--age_judge", "no/such/folder"), "no age estimator"), (("--identity_judge", "arcface"), "is not sface"),
        (("--people", "people.jsonl"), "one of the two"), (("--strength", 0), "--strength"), (("--strength", 0.1), "leaves none of 2"),
        (("--identity_adapter", "nowhere.safetensors"), "no such adapter"), (("--identity_weights", "x"), "'x' is not a finite"),
        (("--identity_adapter", "a/p.safetensors", "b/p.safetensors"), "two have one name"), (("--eta", 2), "--eta"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_anything_is_painted(call, script, grey, tmp_path, options, said):
    code, _, err = script("lida.study.evaluate", *call, *JUDGE, "--output_dir", tmp_path / "out", *options)
    assert code == 2 and said in err and len([line for line in err.splitlines() if line.startswith("error")]) == 1
    assert not list(tmp_path.rglob("*.png"))
