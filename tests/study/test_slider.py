"""Years asked for and years gained: the curve that is fitted to photographs, its error, and the command."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from lida.aging.slider import Slider, inverse
from lida.study.slider import fit

WEIGHTS = ROOT / "weights"
ASKED = [-40.0, -20.0, 0.0, 20.0, 40.0]


def test_a_straight_response_is_inverted_exactly():
    """Half of what is asked for comes out: twice as much must be asked for, and no photograph is off."""
    gained = np.stack([0.5 * np.array(ASKED)] * 3)
    gained[0, 0] = np.nan  # a face too young for it
    years, error = fit(ASKED, gained)
    assert years == pytest.approx([-20, -10, 0, 10, 20]) and error == pytest.approx(0)
    assert [inverse(ASKED, years, y) for y in (-20, -5, 0, 7, 20)] == pytest.approx([-40, -10, 0, 14, 40])
    assert inverse(ASKED, years, 90) == 40 and inverse(ASKED, years, -90) == -40  # its ends


def test_the_error_is_that_of_photographs_left_out():
    """Two gain all that is asked, one half: each is judged by the mean of the others."""
    gained = np.stack([np.array(ASKED), np.array(ASKED), 0.5 * np.array(ASKED)])
    _, error = fit(ASKED, gained)
    off = []
    for own, others in ((1.0, 0.75), (1.0, 0.75), (0.5, 1.0)):  # slopes
        off += [abs(y * own / others - y) for y in range(-60, 61, 10) if y and abs(y / others) <= 40]
    assert error == pytest.approx(np.mean(off))


def test_the_curve_is_the_isotonic_regression_of_the_mean():
    """Its closed form: max over starts of min over ends of the means between (Robertson et al. 1988, theorem 1.4.4)."""
    gained = np.random.default_rng(3).normal(size=(4, 15)) * 20 + np.linspace(-40, 40, 15)
    values, n = gained.mean(0), 15
    by_definition = [max(min(values[j : k + 1].mean() for k in range(i, n)) for j in range(i + 1)) for i in range(n)]
    assert np.allclose(fit(np.linspace(-60, 60, 15), gained)[0], by_definition)


def test_the_command_fits_a_slider(script, tmp_path):
    """On the persons that ship, at few steps: what it writes is a slider, and reads as it prints."""
    photos = [WEIGHTS / "demo" / f"person-{letter}.png" for letter in "abc"]
    masks = tmp_path / "masks"
    masks.mkdir()
    for letter in "abc":
        shutil.copy(WEIGHTS / "demo" / f"person-{letter}-mask.png", masks / f"person-{letter}.png")
    options = ("--pretrained_model_name_or_path", WEIGHTS / "lida-tiny", "--adapter", f"{WEIGHTS / 'age.safetensors'}=1.0")
    options += ("--num_inference_steps", 4, "--age_estimator", WEIGHTS / "age-estimator", "-o", tmp_path / "s.json")
    code, out, err = script("lida.study.slider", *photos, *options, "--masks", masks)
    assert code == 0, err
    found = Slider(**json.loads((tmp_path / "s.json").read_text(encoding="utf-8")))
    assert found.years == sorted(found.years) and found.faces == 3
    assert f"asked for  +20 years, got {found.years[found.asked.index(20.0)]:+5.1f}" in out
    code, _, err = script("lida.study.slider", *photos[:2], *options)
    assert code == 2 and "too few" in err
    for place in (tmp_path, tmp_path / "none" / "s.json"):  # before the photographs, of which there are too few here
        code, _, err = script("lida.study.slider", *photos[:2], *options, "-o", place)
        assert code == 2 and f"{place}: cannot be written" in err
    (masks / "person-c.png").unlink()
    code, _, err = script("lida.study.slider", *photos, *options, "--masks", masks)
    assert code == 2 and "person-c.png: no such file" in err and "0/3" not in err  # none is aged
    code, _, err = script("lida.study.slider", *photos, *options, "--masks", tmp_path / "none")
    assert code == 2 and "no such folder" in err
