"""A slider is fitted to one face, and turns the age that it is to look into the age to ask for."""

import pytest
from conftest import ROOT, box_mask, draws, noise_image

from lida.aging import Edit, StableDiffusion, age_to
from lida.aging.slider import fit_slider, rising
from lida.diffusion import Sampling
from lida.doors.pictures import open_image
from lida.photos.ages import AgeEstimator
from lida.photos.masks import open_mask

WEIGHTS = ROOT / "weights"


def test_a_straight_response_is_inverted_exactly():
    """Half of what is asked for comes out: twice as much must be asked for, up to the curve's ends."""
    slider = rising(40, {0: 20, 20: 30, 60: 50, 80: 60})
    assert [slider.ask(age) for age in (20, 35, 40, 47, 60)] == pytest.approx([0, 30, 40, 54, 80])
    assert slider.ask(90) == 80 and slider.ask(-3) == 0


def test_readings_that_do_not_rise_are_left_out():
    """Of ages that look alike, the nearest to the current one is asked for."""
    slider = rising(40, {20: 35, 10: 38, 0: 12, 50: 39, 60: 48, 70: 48, 80: 47})
    assert (slider.ages, slider.looks) == ([0, 20, 40, 60], [12, 35, 40, 48])
    assert rising(40, {}).ask(70) == 40


def test_the_slider_tells_what_the_age_estimator_reads_from_the_paintings():
    sd = StableDiffusion.load(WEIGHTS / "lida-tiny")
    sd.load_adapter("age", WEIGHTS / "age.safetensors")
    sd.set_adapters(["age"], [1.0])
    image = open_image(WEIGHTS / "demo" / "person-b.png")
    mask = open_mask(WEIGHTS / "demo" / "person-b-mask.png", image.size)
    estimator, edit, sampling = AgeEstimator(WEIGHTS / "age-estimator"), Edit(), Sampling(6)
    now = estimator.of(image, mask)
    slider = fit_slider(sd, image, mask, now, [20], estimator, "a woman", edit, sampling, generator=draws())
    assert slider.ages[0] == slider.looks[0] == now and len(slider.ages) > 2  # no younger ages, for which nobody asked
    aged = age_to(sd, image, mask, slider.ages[1:], now, "a woman", edit, sampling, generator=draws())
    assert [estimator.of(picture, mask) for picture in aged] == pytest.approx(slider.looks[1:], abs=0.1)  # in another batch
    told = fit_slider(sd, image, mask, now - 3, [20], estimator, "a woman", edit, sampling, generator=draws())
    assert told.looks[0] == now - 3  # an age that is given counts, and readings are shifted to it


def test_no_decade_in_the_adapters_ages_is_no_curve(sd):
    image, mask = noise_image(64, 64), box_mask(64, 64, (8, 8, 56, 56))
    slider = fit_slider(sd, image, mask, 99.5, [5], None, "a man", generator=draws())
    assert slider == rising(99.5, {}) and slider.ask(104.5) == 99.5
