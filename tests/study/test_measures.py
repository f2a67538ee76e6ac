"""A setting's line, areas and differences, against the same numbers by hand; rows of small pictures."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from conftest import box_mask, noise_image
from PIL import Image

import lida
from lida.aging import Edit
from lida.study.judges import Judges
from lida.study.measures import areas, ceiling, differences, interference, judge_lines, judged, psnr_inside, summary
from lida.study.painting import Unit
from lida.study.people import Person, Reference, Subject
from lida.study.settings import NEGATIVES, Setting
from lida.study.tradeoff import area, harmonic_score

SETTINGS = [
    Setting("f 1", "f", 1.0, 0.2),
    Setting("f 2", "f", 1.0, 0.5),
    Setting("ceiling", "ceiling", control=True, paints=False),
]


def row(setting: str, person: str, target: int, read: float, similarity: float, **more) -> dict:
    row = {"setting": setting, "person": person, "seed": 0, "target": target, "read": read, "age_error": abs(read - target)}
    return {**row, "similarity_input": similarity, "similarity_target": None, "face": 1.0, "largest_change_outside": 0, **more}


ROWS = [row("f 1", who, target, 40 + k, 0.9 - k / 10) for k, who in enumerate("ab") for target in (20, 40, 60)]
ROWS += [row("f 2", who, target, target + 5 * k, 0.5) for k, who in enumerate("ab") for target in (20, 40, 60)]
ROWS += [row("ceiling", "a", 20, 25, 0.6)]


@pytest.fixture
def subject():
    vectors = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    references = [Reference(22.0, [vectors[1], vectors[0]], [25.0]), Reference(24.0, [vectors[0], vectors[0]], [30.0])]
    return Subject(Person("a.png", "a"), noise_image(40, 40), box_mask(40, 40, (10, 10, 30, 30)), 40.0, vectors, references)


@pytest.fixture
def judges(grey):
    """Two of identity, by colours and by colours; one of age."""
    judges = Judges(["grey_judges:ages"], ["grey_judges:thumbnail"])
    judges.identities.append(copy(judges.identities[0]))
    judges.identities[1].name = "second"
    return judges


def test_a_line_has_the_means_of_its_rows():
    first, second, last = summary(ROWS, SETTINGS)
    assert first["pictures"] == 6 and first["age_error"] == pytest.approx(np.mean([20, 0, 20, 21, 1, 19]))
    assert first["similarity_input"] == pytest.approx(0.85) and first["hcs_target"] is None
    assert first["hcs"] == harmonic_score(first["age_error"], first["similarity_input"])
    assert np.isnan(first["spearman"]) and first["years_per_year"] == pytest.approx(0)  # the same is read for all ages
    assert second["spearman"] == pytest.approx(1) and second["years_per_year"] == pytest.approx(1)
    assert last["setting"] == "ceiling" and np.isnan(last["years_per_year"])  # one age has no slope


def test_an_area_is_that_of_the_means_over_people():
    (found,) = areas(ROWS, SETTINGS)
    expected = area([(0.85, 1 - np.mean([20, 0, 20, 21, 1, 19]) / 40), (0.5, 1 - 2.5 / 40)])
    assert found["area"] == pytest.approx(expected) and found["people"] == 2 and found["identity"] == "similarity_input"
    assert found["low"] <= found["area"] <= found["high"]


def test_differences_are_person_by_person():
    found = {line["column"]: line for line in differences(ROWS, SETTINGS)}
    assert found.keys() == {"age_error", "similarity_input"} and all(line["less"] == "f 1" for line in found.values())
    gaps = [0 - np.mean([20, 0, 20]), 5 - np.mean([21, 1, 19])]
    line = found["age_error"]
    assert line["difference"] == pytest.approx(np.mean(gaps)) and (line["low"], line["high"]) == pytest.approx(
        (min(gaps), max(gaps))
    )
    assert found["similarity_input"]["difference"] == pytest.approx(np.mean([-0.4, -0.3]))


def test_a_picture_is_measured(judges, subject, tmp_path, monkeypatch):
    """The photograph itself, and one changed inside the mask: error, similarity, PSNR, and the change outside."""
    unit = Unit(subject, replace(SETTINGS[0], paints=False), 3, tmp_path)
    subject.vectors[:] = judges.vectors(subject.image, subject.mask)
    (same,) = judged(judges, unit, [30])
    assert same["similarity_input"] == pytest.approx(1) == same["similarity_back:second"] and same["psnr_inside"] is None
    assert same["face"] == 0 and same["largest_change_outside"] == 0
    assert same["age_error"] == abs(same["read"] - 30) and same["age_error_real"] is None
    painted = replace(unit, setting=SETTINGS[0])
    changed = Image.composite(Image.new("RGB", (40, 40), "white"), subject.image, subject.mask)
    changed.putpixel((0, 0), tuple(255 - x for x in subject.image.getpixel((0, 0))))
    painted.folder.mkdir(parents=True)
    changed.save(painted.folder / "age30.png")
    (row,) = judged(judges, painted, [30])
    assert (row["setting"], row["person"], row["seed"], row["target"], row["current"]) == ("f 1", "a", 3, 30, 40.0)
    assert row["similarity_input"] < 1 and "similarity_back" not in row  # which was not painted
    assert row["largest_change_outside"] == max(abs(255 - 2 * x) for x in subject.image.getpixel((0, 0)))
    inside = np.asarray(subject.image, dtype=float)[10:30, 10:30]
    assert row["psnr_inside"] == pytest.approx(10 * np.log10(255**2 / np.mean((255 - inside) ** 2)))


def test_a_picture_without_a_face_gains_nothing(judges, subject, tmp_path):
    for judge in judges.identities:
        judge.embed = lambda square: None
    (row,) = judged(judges, Unit(subject, replace(SETTINGS[0], paints=False), 0, tmp_path), [30])
    assert row["similarity_input"] == 0 == row["similarity_back"]


def test_the_ceiling_compares_real_photographs_with_each_other(judges, subject, tmp_path):
    """Two lie near 20: each is compared with the photograph and with the other one. None lies near 60."""
    rows = ceiling(judges, Unit(subject, SETTINGS[2], 0, tmp_path), [20, 60])
    assert [row["similarity_input"] for row in rows] == [0, 1] and [row["similarity_target"] for row in rows] == [0, 0]
    assert [row["similarity_target:second"] for row in rows] == [1, 1]
    assert [row["age_error"] for row in rows] == [5, 10] and {row["target"] for row in rows} == {20}
    (line,) = judge_lines(judges, [subject])
    assert line["references"] == 2 and line["references_error"] == pytest.approx(np.mean([3, 6]))


def test_interference_needs_five_pairs(adapters):
    """With five people of one adapter the overlap is the same for all, and there is no correlation."""
    age = lida.load_adapter(adapters / "age.safetensors")
    people = [Person("p.png", f"p{k}", identity={"": str(adapters / "person.safetensors")}) for k in range(5)]
    subjects = [Subject(person, None, None, 40.0, [], []) for person in people]
    rows = [row(name, f"p{k}", 20, 20 + k, 0.5) for k in range(5) for name in ("f 1", "age only")]
    plain = replace(SETTINGS[0], edit=Edit(**NEGATIVES["nothing"]))
    settings = [plain, SETTINGS[1]]  # the second leads away from a prompt: it is no plain sum
    assert interference(rows, settings, subjects[:4], age) == []
    (line,) = interference(rows, settings, subjects, age)
    assert (line["weights"], line["pairs"]) == ("1.0 and 0.2", 5) and np.isnan(line["cosine"])


def test_psnr_is_of_what_the_mask_shows():
    a, mask = Image.new("RGB", (8, 8), (100, 100, 100)), box_mask(8, 8, (0, 0, 4, 4))
    assert psnr_inside(a, Image.new("RGB", (8, 8), (110, 110, 110)), mask) == pytest.approx(20 * np.log10(25.5))
    assert psnr_inside(a, a, mask) is None
