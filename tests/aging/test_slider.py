"""A slider turns the years wanted into years to ask for. Its file belongs to one model."""

import json
from dataclasses import asdict

import pytest
from conftest import random_adapter

import lida
from lida.aging.slider import Slider, aging_adapters, inverse, read_slider

ASKED = [-40.0, -20.0, 0.0, 20.0, 40.0]


@pytest.fixture
def slider(sd) -> Slider:
    """A slider that asks for twice the years wanted."""
    return Slider(ASKED, [y / 2 for y in ASKED], 1.5, 3, sd.base, aging_adapters(sd), "ddim_inversion", 4.0)


def written(path, slider: Slider, **changes):
    """Write the slider's file, with other values."""
    path.write_text(json.dumps(asdict(slider) | changes), encoding="utf-8")
    return path


def test_a_straight_curve_is_inverted_exactly(slider):
    assert [slider.ask(y) for y in (-20, -5, 0, 7, 20)] == pytest.approx([-40, -10, 0, 14, 40])
    assert slider.ask(90) == 40 and slider.ask(-90) == -40 and slider.reach == (-20, 20)  # its ends


def test_where_the_curve_is_flat_the_least_is_asked_for():
    years = [-3.0, -3.0, 0.0, 5.0, 5.0]
    assert [inverse(ASKED, years, y) for y in (-3, 5, 60)] == [-20, 20, 20]


def test_a_slider_is_read_as_it_was_written(sd, slider, tmp_path):
    assert read_slider(written(tmp_path / "s.json", slider), sd) == slider


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asked": [1.0]}, "its curve does not rise"),
        ({"asked": [], "years": []}, "its curve does not rise"),
        ({"years": [0.0, 1.0, 5.0, 2.0, 3.0]}, "its curve does not rise"),
        ({"asked": [1e300] * 5}, "its numbers are out of range"),
        ({"years": "far"}, "s.json: years: 'far' is not list"),
        ({"error": None}, "s.json: error: None is not"),
        ({"faces": 2.5}, "s.json: faces: 2.5 is not int"),
        ({"colour": "red"}, "'colour' is not a field"),
        ({"base": {}}, "fitted to another base"),
        ({"adapters": {"0" * 64: "1.0"}}, "fitted to another base, age adapter or weight"),
    ],
)
def test_a_slider_that_is_broken_or_of_another_model_is_refused(sd, slider, tmp_path, changes, message):
    with pytest.raises(lida.InputError, match=message):
        read_slider(written(tmp_path / "s.json", slider, **changes), sd)


def test_a_slider_belongs_to_the_age_adapter_and_its_weight(sd, slider, tmp_path):
    """An adapter whose captions have no ages does not matter."""
    path = written(tmp_path / "s.json", slider)
    sd.load_adapter("id", lida.Adapter(random_adapter(sd, 1).layers))
    sd.set_adapters(["id"], [1.0])
    assert read_slider(path, sd) == slider
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [1.0])
    written(path, slider, adapters=aging_adapters(sd))
    assert read_slider(path, sd).adapters == {sd.adapters["age"].fingerprint: "1.0"}
    sd.set_adapters(["age"], [0.5])
    with pytest.raises(lida.InputError, match="fitted to another base, age adapter or weight"):
        read_slider(path, sd)


def test_a_file_that_is_no_slider_is_refused(sd, tmp_path):
    (tmp_path / "s.json").write_text("{", encoding="utf-8")
    for path, message in ((tmp_path / "s.json", "not readable as JSON"), (tmp_path / "none.json", "no such file")):
        with pytest.raises(lida.InputError, match=message):
            read_slider(path, sd)
