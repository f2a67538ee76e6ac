"""Judges of age and of identity: what they measure, what they refuse, and photographs without a face."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, noise_image
from PIL import Image

from lida.data.folder import read_examples
from lida.doors.errors import InputError
from lida.doors.pictures import open_image
from lida.photos.ages import square_of
from lida.photos.faces import FaceNetworks
from lida.study.judges import IDENTITY_CONTEXT, AgeJudge, IdentityJudge, Judges
from lida.study.people import Dated, Person

ESTIMATOR = ROOT / "weights" / "age-estimator"


@pytest.fixture(scope="module")
def judges(grey):
    return Judges(["grey_judges:ages"], ["sface", "grey_judges:thumbnail"])


def test_a_judge_measured_on_faces_knows_its_bias(grey):
    """One that reads ten years too many reads 21 of eleven-year-olds."""
    judge = AgeJudge("grey_judges:ages")
    assert judge.expected(11) is None and judge.mean_error is None
    judge.read = lambda squares: [14.0, 24.0, 34.0]
    judge.measure([None] * 3, [4, 14, 24])
    assert judge.mean_error == pytest.approx(10) and judge.expected(11) == pytest.approx(21)


def test_a_bias_runs_in_straight_lines_between_decades(tmp_path):
    """The shipped estimator's own readings.json, by hand."""
    rows = json.loads((ESTIMATOR / "readings.json").read_text(encoding="utf-8"))
    judge = AgeJudge(str(ESTIMATOR))
    assert judge.expected(44.5) == pytest.approx(44.5 + rows["40s"]["bias"])
    assert judge.expected(47.0) == pytest.approx(47 + 0.75 * rows["40s"]["bias"] + 0.25 * rows["50s"]["bias"])
    assert judge.mean_error == pytest.approx(rows["all"]["mean_error"], abs=0.05)  # which has one place per decade


def test_measuring_leaves_out_what_has_no_face(judges, demo, tmp_path):
    shutil.copy(demo[0], tmp_path / "a.png")
    noise_image(64, 64).save(tmp_path / "b.png")
    lines = [{"file_name": name, "age": 30, "text": "x"} for name in ("a.png", "b.png")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.warns(match="b.png: no face is found"):
        judges.measure(tmp_path)
    (errors,) = judges.ages[0].errors.values()
    image, mask = judges.largest_face(tmp_path / "a.png")
    assert errors.faces == 1 and errors.bias == pytest.approx(judges.readings([image], mask)[0, 0] - 30)


def test_references_without_a_face_are_left_out_by_name(judges, demo, tmp_path):
    noise_image(64, 64).save(tmp_path / "nobody.png")
    references = [Dated(str(tmp_path / "nobody.png"), 20.0), Dated(str(demo[0]), 44.0)]
    with pytest.warns(match="nobody.png: no face is found in it"):
        subject = judges.open(Person(str(demo[0]), mask=str(demo[1]), references=references))
    assert [reference.age for reference in subject.references] == [44.0] and subject.near(40, 5) == subject.references
    with pytest.raises(InputError, match="nobody.png: a judge of identity finds no face"):
        judges.open(Person(str(tmp_path / "nobody.png"), mask="0,0,64,64"))


def test_the_age_is_given_or_read(judges, demo):
    person = Person(str(demo[0]), mask=str(demo[1]))
    image, mask = open_image(demo[0]), Image.open(demo[1]).convert("L")
    assert judges.open(person).current == pytest.approx(np.asarray(square_of(image, mask).convert("L")).mean() / 3)
    assert judges.open(Person(str(demo[0]), mask=str(demo[1]), age=50.0)).current == 50


def test_a_cosine_is_one_of_unit_vectors(judges, demo):
    own = judges.identities[1]
    a, b = (own(noise_image(20, 20, seed)) for seed in (0, 1))
    assert np.linalg.norm(a) == pytest.approx(1) and own.similarity(a, a) == pytest.approx(1)
    assert own.similarity(a, b) == pytest.approx(1 - np.square(a - b).sum() / 2)
    assert judges.column("x", own) == "x:grey_judges:thumbnail" and judges.column("x", judges.identities[0]) == "x"


@pytest.mark.parametrize("source", ["sface", "dlib"])
def test_networks_tell_invented_persons_apart(source):
    """Pictures of one person are more alike than those of two, and alike enough for the network's own threshold."""
    if source == "dlib":
        pytest.importorskip("dlib", reason="pip install dlib-bin face_recognition_models")
    judge = IdentityJudge(source, FaceNetworks())
    albums = [[judge(open_image(e.path)) for e in read_examples(ROOT / "weights" / f"person-{x}")[:3]] for x in "ab"]
    (a, b, c), (d, e, f) = albums
    same = min(judge.similarity(x, y) for x, y in ((a, b), (b, c), (c, a), (d, e), (e, f), (f, d)))
    assert same > judge.same and same > max(judge.similarity(x, y) for x in (a, b, c) for y in (d, e, f))
    assert judge(noise_image(64, 64)) is None


def test_dlibs_vector_is_that_of_its_own_detector(judges, demo):
    """The box around the face comes from YuNet. dlib's own box gives nearly the same vector; two persons are 0.6 apart."""
    dlib = pytest.importorskip("dlib", reason="pip install dlib-bin face_recognition_models")
    folder = Path(importlib.util.find_spec("face_recognition_models").origin).parent / "models"
    landmarks = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
    square = square_of(open_image(demo[0]), Image.open(demo[1]).convert("L"), IDENTITY_CONTEXT)
    (box,) = dlib.get_frontal_face_detector()(np.asarray(square), 1)
    theirs = np.array(network.compute_face_descriptor(np.asarray(square), landmarks(np.asarray(square), box)))
    judge = IdentityJudge("dlib", judges.faces)
    ours = judge(square)
    assert np.linalg.norm(ours - theirs) < 0.06
    assert judge.similarity(ours, theirs) == pytest.approx(1 - np.linalg.norm(ours - theirs) / 1.2)


@pytest.mark.parametrize("ages, identities, said", [
    (["os:nothing"], ["sface"], "cannot be imported"), (["os:sep"], ["sface"], "is a str"),
    (["no/such/folder"], ["sface"], "no age estimator"), (["grey_judges:ages"], ["arcface"], "is not sface, dlib"),
    (["grey_judges:ages"] * 2, ["sface"], "name of two judges"),
])  # fmt: skip
def test_invalid_judges_are_refused_in_one_line(grey, ages, identities, said):
    with pytest.raises(InputError, match=said) as error:
        Judges(ages, identities)
    assert len(error.value.args) == 1 and "\n" not in str(error.value)


@pytest.mark.parametrize("answer", [[1.0], [1.0, float("nan")]])
def test_a_judge_must_give_a_number_for_each_face(grey, answer):
    judge = AgeJudge("grey_judges:ages")
    judge.read = lambda squares: answer
    with pytest.raises(InputError, match="a number for each"):
        judge([None, None])


@pytest.mark.parametrize("answer", ["someone", 3.0, np.zeros(4), np.full(4, np.nan), [[1.0]]])
def test_a_judge_of_identity_must_give_a_vector(judges, monkeypatch, answer):
    judge = judges.identities[1]
    monkeypatch.setattr(judge, "embed", lambda square: answer)
    with pytest.raises(InputError, match="grey_judges:thumbnail: returned .* it must return a vector of numbers, or None"):
        judge(noise_image(9, 9))
