"""Years that were asked for and years that were got: the curve, its inverse, its error, and infer.py --years."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from conftest import ROOT, noise_image
from PIL import Image
from test_infer import run  # noqa: F401
from test_scripts import script  # noqa: F401

import lida
from lida.photos.captions import mixed_caption
from lida.photos.squares import with_detail
from lida.photos.marking import read_settings
from lida.aging.editing import age_to, detail_between, strength_between
from lida.study.slider import Slider, aging_adapters, ask, fit

WEIGHTS = ROOT / "weights"
ASKED = [-40.0, -20.0, 0.0, 20.0, 40.0]


def test_a_straight_response_is_inverted_exactly():
    """Half of what is asked for comes out: twice as much must be asked for, and no photograph is off."""
    gained = np.stack([0.5 * np.array(ASKED)] * 3)
    gained[0, 0] = np.nan  # a face too young for it
    years, error = fit(ASKED, gained)
    assert years == pytest.approx([-20, -10, 0, 10, 20]) and error == pytest.approx(0)
    assert [inverse(ASKED, years, y) for y in (-20, -5, 0, 7, 20)] == pytest.approx([-40, -10, 0, 14, 40])
    assert inverse(ASKED, years, 90) == 40 and ask(ASKED, years, -90) == -40  # its ends


def test_the_error_is_that_of_photographs_left_out():
    """Two gain all that is asked, one half: each is judged by the mean of the others."""
    gained = np.stack([np.array(ASKED), np.array(ASKED), 0.5 * np.array(ASKED)])
    _, error = fit(ASKED, gained)
    off = []
    for own, others in ((1.0, 0.75), (1.0, 0.75), (0.5, 1.0)):  # slopes
        off += [abs(y * own / others - y) for y in range(-60, 61, 10) if y and abs(y / others) <= 40]
    assert error == pytest.approx(np.mean(off))


def test_where_the_curve_is_flat_least_is_asked_for():
    years = [-3.0, -3.0, 0.0, 5.0, 5.0]
    assert inverse(ASKED, years, -3) == -20 and ask(ASKED, years, 5) == 20 and ask(ASKED, years, 60) == 20


@pytest.fixture
def slider(run, folder, tmp_path):  # noqa: F811
    """One by which twice the years must be asked for, of the small random model."""
    sd = lida.StableDiffusion.load(folder)
    known = Slider(ASKED, [y / 2 for y in ASKED], 1.5, 3, sd.base, aging_adapters(sd), "ddim_inversion", 4.0)
    path = tmp_path / "slider.json"
    path.write_text(json.dumps(asdict(known)), encoding="utf-8")
    return path


def test_years_are_asked_for_by_the_slider(run, slider, tmp_path):  # noqa: F811
    noise_image(90, 120).save(tmp_path / "a.png")
    run(tmp_path / "a.png", "--mask", "20,30,70,90", "--current_age", 40, "--years", -10, 15, 30, "--slider", slider)
    assert "1.5 off" in run.err and "--years +30 is beyond what the slider reaches, -20 to +20" in run.err
    assert "was fitted at" not in run.err
    for end, asked in (("years-10", 20), ("years+15", 70), ("years+30", 80)):
        told = read_settings(run.folder / "outputs" / f"a-{end}.png")
        assert told["whole_prompt"] == mixed_caption("a portrait photo of {subject}, age {decade}", "a person", asked)
        assert told["strength"] == strength_between(asked, 40) and told["detail"] == detail_between(asked, 40)


def test_a_slider_of_another_model_is_refused(run, slider, script, folder, tmp_path):  # noqa: F811
    noise_image(90, 120).save(tmp_path / "a.png")
    call = (tmp_path / "a.png", "--mask", "20,30,70,90", "--current_age", 40, "--years", 10)
    call += ("--pretrained_model_name_or_path", folder, "--num_inference_steps", 6, "--slider")
    code, _, err = script("infer.py", *call, slider, "--guidance_scale", 2)
    assert code == 0 and "was fitted at ddim_inversion, guidance 4" in err
    slider.write_text(slider.read_text(encoding="utf-8").replace('"vae": "', '"vae": "0'), encoding="utf-8")
    for path, said in (
        (slider, "another base"),
        (tmp_path / "a.png", "is no slider"),
        (tmp_path / "none.json", "is no slider"),
    ):
        code, _, err = script("infer.py", *call, path)
        assert code == 2 and said in err and "python -m lida.study.slider" in err
    code, _, err = script("infer.py", *call, slider, "--method", "inpaint")
    assert code == 2 and "--years [10]" in err


def test_the_command_fits_one(script, tmp_path):  # noqa: F811
    """On the persons that ship, at few steps: what it writes is what infer.py reads."""
    photos = [WEIGHTS / "demo" / f"person-{letter}.png" for letter in "abc"]
    masks = tmp_path / "masks"
    masks.mkdir()
    for letter in "abc":
        (masks / f"person-{letter}.png").write_bytes((WEIGHTS / "demo" / f"person-{letter}-mask.png").read_bytes())
    age = f"{WEIGHTS / 'age.safetensors'}=1.0"
    options = ("--pretrained_model_name_or_path", WEIGHTS / "lida-tiny", "--adapter", age, "--num_inference_steps", 4)
    options += ("--age_estimator", WEIGHTS / "age-estimator", "--masks", masks, "-o", "s.json")
    code, out, err = script("lida.study.slider", *photos, *options)
    assert code == 0, err
    found = Slider(**json.loads((script.folder / "s.json").read_text(encoding="utf-8")))
    assert found.years == sorted(found.years) and found.faces == 3 and "asked for  +20 years" in out
    code, _, err = script("lida.study.slider", *photos[:2], *options)
    assert code == 2 and "too few" in err
    code, _, err = script(
        "infer.py", photos[0], "--mask", masks / "person-a.png", "--adapter", age, "--years", 5, "--slider", "s.json"
    )
    assert code == 0, err


def test_detail_is_what_the_autoencoder_lost():
    """Of the unchanged picture all comes back; a change is laid over the photograph at its own size."""
    square, known = noise_image(90, 90), noise_image(32, 32, 1)
    assert np.array_equal(np.asarray(with_detail(known, known, square, 1.0)), np.asarray(square))
    patch = Image.fromarray(np.asarray(known) // 2)
    large = [np.asarray(x.resize((90, 90), Image.Resampling.LANCZOS), dtype=np.float32) for x in (patch, known)]
    expected = (large[0] + 0.5 * (np.asarray(square, dtype=np.float32) - large[1])).clip(0, 255).round()
    assert np.array_equal(np.asarray(with_detail(patch, known, square, 0.5)), expected.astype(np.uint8))


def test_a_black_and_white_photograph_stays_so(folder):
    sd = lida.StableDiffusion.load(folder)
    photo = noise_image(80, 80).convert("L").convert("RGB")
    mask = Image.new("L", (80, 80), 0)
    mask.paste(255, (20, 20, 60, 60))
    for picture in age_to(sd, photo, mask, [20, 70], 40, num_inference_steps=4):
        pixels = np.asarray(picture)
        assert (pixels == pixels[..., :1]).all() and (pixels != np.asarray(photo)).any()


def test_age_to_is_age_face_by_the_defaults(folder):
    """One age alone: its caption, the photograph inverted under the neutral prompt, guidance away from that, all detail."""
    sd = lida.StableDiffusion.load(folder)
    photo, mask = noise_image(80, 80), Image.new("L", (80, 80), 0)
    mask.paste(255, (20, 20, 60, 60))
    neutral = "a portrait photo of a man"
    options = {"method": "ddim_inversion", "source_prompt": neutral, "negative_prompt": neutral, "guidance_scale": 4.0}
    options |= {"strength": strength_between(70, 40), "detail": 1.0, "num_inference_steps": 8}
    (theirs,) = lida.age_face(sd, photo, mask, f"{neutral}, age 70s", **options)
    (ours,) = age_to(sd, photo, mask, [70], 40, "a man", num_inference_steps=8)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
