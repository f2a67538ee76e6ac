"""infer.py --years: the ages that a slider leads to, and sliders that belong to another model."""

import json
from dataclasses import asdict

import pytest
from conftest import noise_image

from lida.aging import Edit
from lida.aging.slider import Slider, aging_adapters
from lida.photos.captions import Captioning
from lida.photos.marking import read_settings

ASKED = [-40.0, -20.0, 0.0, 20.0, 40.0]


@pytest.fixture
def slider(sd, tmp_path):
    """One by which twice the years must be asked for, of the small random model."""
    slider = Slider(ASKED, [y / 2 for y in ASKED], 1.5, 3, sd.base, aging_adapters(sd), "ddim_inversion", 4.0)
    path = tmp_path / "slider.json"
    path.write_text(json.dumps(asdict(slider)), encoding="utf-8")
    return path


@pytest.fixture
def call(folder, tmp_path):
    noise_image(90, 120).save(tmp_path / "a.png")
    given = (tmp_path / "a.png", "--mask", "20,30,70,90", "--current_age", 40, "--num_inference_steps", 6)
    return "infer.py", *given, "--pretrained_model_name_or_path", folder


def test_years_are_asked_for_by_the_slider(script, call, slider):
    code, _, err = script(*call, "--years", -10, 15, 30, "--slider", slider)
    assert code == 0 and "1.5 off" in err and "30 years: the slider reaches -20 to +20" in err and "other settings" not in err
    made = {read_settings(path)["label"]: read_settings(path) for path in (script.folder / "outputs").glob("a-years*.png")}
    for label, asked in (("-10 years", 20), ("+15 years", 70), ("+30 years", 80)):
        edit = Edit().towards(asked, 40)
        assert made[label]["whole_prompt"] == Captioning().prompt("a person", asked)
        assert (made[label]["strength"], made[label]["detail"]) == (edit.strength, edit.detail)


def test_a_slider_of_other_settings_warns_and_one_of_another_model_is_refused(script, call, slider):
    code, _, err = script(*call, "--years", 10, "--slider", slider, "--guidance_scale", 2)
    assert code == 0 and "was fitted at other settings" in err
    slider.write_text(slider.read_text(encoding="utf-8").replace('"vae": "', '"vae": "0'), encoding="utf-8")
    code, _, err = script(*call, "--years", 10, "--slider", slider)
    assert code == 2 and "another base" in err and "python -m lida.study.slider" in err
