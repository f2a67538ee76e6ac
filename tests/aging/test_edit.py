"""How the years decide strength and detail, which captions ask for an age, and which values an Edit refuses."""

import pytest
from conftest import random_adapter

from lida.aging import Edit, plan_ages, plan_prompt
from lida.aging.edit import FULL_GAP, LEAST_STRENGTH, MOST_STRENGTH
from lida.photos import Captioning


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "redraw"}, "method 'redraw' is not one of flow_edit, ddim_inversion, inpaint"),
        ({"strength": 0}, "strength must be above 0 and up to 1, not 0"),
        ({"strength": 1.2}, "strength must be above 0 and up to 1, not 1.2"),
        ({"strength": float("nan")}, "strength must be above 0 and up to 1, not nan"),
        ({"detail": -0.1}, "detail must lie between 0 and 1, not -0.1"),
        ({"detail": 2}, "detail must lie between 0 and 1, not 2"),
        ({"context": 0.5}, "context must lie between 1 and 100, not 0.5"),
        ({"context": float("inf")}, "context must lie between 1 and 100, not inf"),
    ],
)
def test_edit_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Edit(**values)


def test_prompts_that_are_not_texts_are_refused():
    for values in ({"source_prompt": b"a boy"}, {"negative_prompt": 5}, {"negative_prompt": ["a girl"]}):
        with pytest.raises(TypeError):
            Edit(**values)


def test_the_strength_rises_with_the_years_between():
    middle = (LEAST_STRENGTH + MOST_STRENGTH) / 2
    strengths = {60: LEAST_STRENGTH, 72.5: middle, 47.5: middle, 85: MOST_STRENGTH, 35: MOST_STRENGTH, 0: MOST_STRENGTH}
    edits = {age: Edit().towards(age, 60) for age in strengths}
    assert all(edits[age].strength == pytest.approx(strength) for age, strength in strengths.items()) and FULL_GAP == 25
    assert {edit.detail for edit in edits.values()} == {1}
    assert Edit("inpaint").towards(60, 60).detail == 0  # drawn noise leads to another face


def test_what_is_given_is_not_chosen_by_the_years():
    given = Edit(strength=0.9, detail=0.25, source_prompt="a", negative_prompt="b")
    assert given.towards(90, 20) == given.without_age() == given
    assert Edit().without_age() == Edit(strength=0.5, detail=0.0, source_prompt="", negative_prompt="")


def test_targets_are_captions_of_the_merged_age_adapter(sd):
    plan = plan_ages(sd, [34], 34)
    (target,), edit = plan.targets, plan.edit
    assert edit == Edit(strength=LEAST_STRENGTH).of_face(sd.captioning, "a person", 34) and edit.source_prompt == target.prompt
    shares = {"a portrait photo of a person, age 30s": 0.6, "a portrait photo of a person, age 40s": 0.4}
    assert target.prompt == pytest.approx(shares) and (target.strength, target.detail) == (LEAST_STRENGTH, 1)
    sd.load_adapter("age", random_adapter(sd, 0))
    sd.set_adapters(["age"], [1.0])
    assert [target.prompt for target in plan_ages(sd, [34, 70], 30, "sks").targets] == ["sks 34", "sks 70"]
    sd.set_adapters([], [])
    assert plan_ages(sd, [10], 30).targets[0].prompt == "a portrait photo of a child, age 10s"
    assert plan_ages(sd, [40], 30).targets[0].prompt == sd.captioning.prompt_from("a person", 40, 30)


def test_a_noun_without_its_article_is_the_same_subject(sd):
    assert plan_ages(sd, [40, 5], 30, "man") == plan_ages(sd, [40, 5], 30, "a man")
    assert plan_prompt("a boy", "woman") == plan_prompt("a boy", "a woman")


def test_a_face_is_described_by_the_caption_of_its_age_and_guidance_leads_away_from_it():
    caption = Captioning().prompt("a man", 34)
    assert Edit(strength=0.4).of_face(Captioning(), "a man", 34.2) == Edit(
        strength=0.4, source_prompt=caption, negative_prompt=caption
    )
    assert Edit().of_face(Captioning(), "a woman", 8).source_prompt == Captioning().prompt("a girl", 8)
    assert Edit("inpaint").of_face(Captioning(), "a man", 34).negative_prompt == ""
    given = Edit(source_prompt="a", negative_prompt="b")
    assert given.of_face(Captioning(), "a man", 34) == given


def test_a_prompt_without_an_age_replaces_a_caption_of_the_subject():
    plan = plan_prompt("a boy", "sks man")
    assert plan.edit == Edit(source_prompt="a portrait photo of sks man").without_age()
    assert plan.targets == [plan.edit.target("a boy")]
    assert plan_prompt("a boy", "sks man", given := Edit("inpaint", 0.9, 0.1, "a", "b")).edit == given
