"""Each face of a photograph is repainted as it would be alone, and saved with the settings of its picture."""

from pathlib import Path

import numpy as np
import pytest
from conftest import box_mask, draws, noise_image

from lida.aging import Edit, age_to, plan_ages
from lida.aging.photograph import Photograph, made_with, repaint_faces, save_row
from lida.diffusion import Sampling
from lida.doors.errors import InputError
from lida.photos.marking import read_settings

BOXES, AGES = ((4, 10, 40, 50), (60, 30, 96, 70)), (30.0, 50.0)


@pytest.fixture
def photo() -> Photograph:
    """Two faces, whose masks do not meet."""
    masks = [box_mask(100, 80, box) for box in BOXES]
    return Photograph(Path("anna.png"), noise_image(100, 80), masks, list(AGES), "a man", {"anna.png": "0" * 64})


def test_two_faces_together_are_each_alone_and_are_saved_with_their_targets(sd, photo, tmp_path):
    sampling = Sampling(4)
    plans = [plan_ages(sd, [20, 60], age, "a man") for age in AGES]
    pictures = repaint_faces(sd, photo, plans, sampling, seed=7)
    alone = [
        age_to(sd, photo.image, mask, [20, 60], age, "a man", sampling=sampling, generator=draws(7))
        for mask, age in zip(photo.masks, AGES)
    ]
    for k, picture in enumerate(pictures):
        expected = np.asarray(photo.image).copy()
        for faces, mask in zip(alone, photo.masks):
            inside = np.asarray(mask) > 0
            expected[inside] = np.asarray(faces[k])[inside]
        assert np.array_equal(np.asarray(picture), expected)
    paths = save_row(photo, plans, pictures, ["a", "b"], ["20", "60"], tmp_path, made_with(sd, 7))
    assert [path.name for path in paths] == ["a.png", "b.png", "anna-sheet.png"]
    for k, path in enumerate(paths[:2]):
        told = read_settings(path)
        assert told["strength"] == [plan.targets[k].strength for plan in plans] and told["current_age"] == list(AGES)
        assert told["seed"] == 7 and told["base"] == sd.base and told["files"] == photo.files
        assert told["report"]["largest_change_outside"] == 0
    one = Photograph(photo.path, photo.image, photo.masks[:1], [30.0], "a man", photo.files)
    saved = save_row(one, plans[:1], pictures, ["c", "d"], ["20", "60"], tmp_path, made_with(sd))
    assert read_settings(saved[0])["strength"] == plans[0].targets[0].strength  # not a list for one face


def test_what_cannot_be_repainted_names_the_photograph(sd, photo):
    plans = [plan_ages(sd, [20], age, "a man", Edit(strength=0.01)) for age in AGES]
    with pytest.raises(InputError, match=r"^anna.png: strength must be above 0 .* give more steps"):
        repaint_faces(sd, photo, plans, Sampling(4))
