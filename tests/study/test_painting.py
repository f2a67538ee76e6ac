"""Painting: the pictures of a unit, what is recorded of them, and adapters that act in a part of the face."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import box_mask, noise_image
from PIL import Image

import lida
from lida.aging import Edit
from lida.diffusion import Sampling
from lida.study.painting import Painter, Unit, random_adapter, shrunk
from lida.study.people import Person, Subject
from lida.study.settings import Setting

FEW = Sampling(3, 3.0)


@pytest.fixture
def painter(folder, adapters):
    return Painter(str(folder), str(adapters / "age.safetensors"), "cpu", [20, 60], back=True)


@pytest.fixture
def unit(adapters, tmp_path):
    noise_image(80, 80).save(tmp_path / "a.png")
    person = Person(str(tmp_path / "a.png"), mask="20,20,60,60", identity={"own": str(adapters / "person.safetensors")})
    subject = Subject(person, noise_image(80, 80), box_mask(80, 80, (20, 20, 60, 60)), 40.0, [], [])
    return Unit(subject, Setting("x", "x", 0.7, 0.4, adapter="own", sampling=FEW, edit=Edit(strength=0.7)), 3, tmp_path)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def aged(sd, image, unit, ages, current, subject="sks", edit=None) -> list[Image.Image]:
    edit = edit or unit.setting.edit_for(subject)
    generator = torch.Generator().manual_seed(unit.seed)
    return lida.age_to(sd, image, unit.subject.mask, ages, current, subject, edit, FEW, generator=generator)


def near(a: Image.Image, b: Image.Image) -> bool:
    """Equal but for rounding, which moves single pixels by a level or two; other weights move the mean by more than one."""
    return bool(np.abs(pixels(a) - pixels(b)).mean() < 0.1)


def test_pictures_are_those_of_age_to_and_aged_back(painter, unit, sd, adapters):
    made = painter.paint(unit)
    sd.load_adapter("age", adapters / "age.safetensors")
    sd.load_adapter("own", adapters / "person.safetensors")
    sd.set_adapters(["age", "own"], [0.4, 0.7])
    expected = aged(sd, unit.subject.image, unit, [20, 60], 40.0)
    assert (
        list(made) == ["age20", "age60", "back20", "back60"]
        and near(made["age20"], expected[0])
        and near(made["age60"], expected[1])
    )
    (back,) = aged(sd, made["age60"], unit, [40.0], 60)
    assert near(made["back60"], back) and not near(back, made["age60"])


def test_without_identity_the_kind_is_asked_for(painter, unit, sd, adapters):
    sd.load_adapter("age", adapters / "age.safetensors")
    sd.set_adapters(["age"], [0.4])
    (expected,) = aged(sd, unit.subject.image, unit, [20], 40.0, "a person")
    painter.ages, painter.back = (20,), False
    assert near(painter.paint(replace(unit, setting=replace(unit.setting, identity=0.0)))["age20"], expected)


def test_a_random_adapter_takes_the_place_of_one(painter, unit, sd, adapters):
    person = lida.load_adapter(adapters / "person.safetensors")
    sd.load_adapter("age", adapters / "age.safetensors")
    sd.load_adapter("own", random_adapter(person, 0))
    sd.set_adapters(["age", "own"], [0.4, 0.7])
    (expected,) = aged(sd, unit.subject.image, unit, [20], 40.0)
    painter.ages, painter.back = (20,), False
    assert near(painter.paint(replace(unit, setting=replace(unit.setting, random="identity")))["age20"], expected)


def test_everything_that_decides_a_picture_is_recorded(painter, unit, adapters, tmp_path):
    record = painter.record(unit)
    assert record["identity"] == lida.load_adapter(adapters / "person.safetensors").fingerprint and record["seed"] == 3
    noise_image(80, 80, 1).save(tmp_path / "b.png")
    person, subject = unit.subject.person, unit.subject
    others = [replace(person, kind="man"), replace(person, subject="x"), replace(person, mask="0,0,9,9")]
    others += [
        replace(person, photo=str(tmp_path / "b.png"), name="a"),
        replace(person, identity={"own": str(adapters / "age.safetensors")}),
    ]
    units = [replace(unit, subject=replace(subject, person=other)) for other in others]
    units += [replace(unit, subject=replace(subject, current=41.0)), replace(unit, seed=4)]
    units += [replace(unit, setting=replace(unit.setting, edit=Edit()))]
    records = [record, *map(painter.record, units)]
    assert all(a != b for k, a in enumerate(records) for b in records[:k])


def test_within_the_whole_mask_is_everywhere_that_is_painted(painter, unit):
    """A hard mask as large as the square: an adapter within all of it is an adapter that is merged."""
    subject = replace(unit.subject, mask=box_mask(80, 80, (0, 0, 80, 80)))
    painter.ages, painter.back = (20,), False
    merged, within, part = (
        painter.paint(replace(unit, subject=subject, setting=replace(unit.setting, within=share)))["age20"]
        for share in (0.0, 1.0, 0.3)
    )
    assert near(merged, within) and not near(merged, part)


def test_a_mask_shrinks_about_its_middle():
    mask = box_mask(60, 40, (10, 10, 50, 30))
    assert shrunk(mask, 0.5).getbbox() == (20, 15, 40, 25) and np.array_equal(np.asarray(shrunk(mask, 1.0)), np.asarray(mask))
