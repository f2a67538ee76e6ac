"""Captions: templates, the noun of an age, the prompt between two decades, and what adapters record of captions."""

import pytest

from lida.doors.errors import InputError
from lida.photos.captions import Captioning, caption, captioning_of, check_template, noun_of


def test_a_template_is_filled_in():
    assert caption("{subject} {age} {decade}", "Anna", 7) == "Anna 7 0s"
    assert caption("a {gender} in his {decade}", "a man", 64) == "a man in his 60s"
    assert caption("{subject}, {gender}", "an old man", 70) == "an old man, man"
    check_template("a {age} year old {{x}}")


@pytest.mark.parametrize(
    "template",
    ["a face", "{name} {age}", "{age", "{} {age}", "{age.real}", "{age[0]}", "{decade:02d}", "{age:>9999999999}", "{age!r}",
     "{age:{decade}}", "{age}" + "x" * 1000],
)  # fmt: skip
def test_other_templates_are_refused_before_they_are_filled_in(template):
    with pytest.raises(InputError, match="^template "):
        check_template(template)
    with pytest.raises(InputError, match="^x: template"):
        captioning_of({"x": {"template": template}})


def test_the_noun_follows_the_age():
    ages = (0, 12, 13, 64, 65, 99)
    assert [noun_of("a man", age, old=65) for age in ages] == ["a boy", "a boy", "a man", "a man", "an old man", "an old man"]
    assert [noun_of("a woman", age)[-5:] for age in ages] == [" girl", " girl", "woman", "woman", "woman", "woman"]
    assert [noun_of("a person", age) for age in (3, 30, 70)] == ["a child", "a person", "an old person"]
    assert [noun_of("sks man", age) for age in (3, 30, 70)] == ["sks boy", "sks man", "sks old man"]
    assert {noun_of("sks", age) for age in ages} == {"sks"} and noun_of("woman", 3) == "woman"
    assert {noun_of("a man", age, child=0, old=0) for age in ages} == {"a man"}


def test_ages_are_rounded_and_clamped():
    captioning = Captioning(ages=(2, 80))
    assert [captioning.nearest(age) for age in (-5, 2.4, 33.6, 90)] == [2, 2, 34, 80]
    assert [captioning.prompt("a man", age) for age in (-3, 140)] == [captioning.prompt("a man", age) for age in (0, 99)]
    assert captioning.prompt("a man", 49.6) == captioning.prompt("a man", 50)


def test_for_an_older_age_of_a_grown_up_an_old_persons_caption_is_mixed_in():
    captioning = Captioning()
    now, old = (f"a portrait photo of {who}" for who in ("a man, age 30s", "an old man, age 70s"))
    assert captioning.prompt_from("a man", 44, 30) == pytest.approx({now: 1 - 0.4**0.5, old: 0.4**0.5})
    halfway = {now: 0.6 / 2, "a portrait photo of a man, age 40s": 0.4 / 2, old: 1 / 2}
    assert captioning.prompt_from("a man", 41.75, 34) == pytest.approx(halfway)  # a quarter of the way to 65, its root
    assert captioning.prompt_from("a man", 65, 30) == pytest.approx({now: 0, old: 1})
    assert captioning.prompt_from("a man", 80, 30) == pytest.approx({now: 1 - (10 / 7) ** 0.5, old: (10 / 7) ** 0.5})  # beyond
    assert captioning.prompt_from("a man", 95, 54)[old] == 1.5  # not further


def test_one_who_is_or_will_soon_be_old_is_led_away_from_the_caption_of_one_who_is_not():
    own, middle = (f"a portrait photo of {who}" for who in ("an old man, age 80s", "a man, age 40s"))
    for current, share in ((65, 0.25), (55, 25 / 60), (54.6, 25.4 / 60)):
        assert Captioning().prompt_from("a man", 80, current) == pytest.approx({own: 1 + share, middle: -share})


def test_the_noun_is_that_of_the_rounded_age():
    captioning = Captioning()
    assert captioning.prompt_from("a man", 12.6, 40) == captioning.prompt_from("a man", 13, 40)
    assert captioning.prompt_from("a man", 70, 59.6) == pytest.approx(captioning.prompt_from("a man", 70, 60), abs=0.01)


def test_a_younger_age_of_a_grown_up_is_led_to_by_a_young_persons_caption():
    captioning, now, young = Captioning(), "a portrait photo of sks man, age 40s", "a portrait photo of sks young man, age 20s"
    assert captioning.prompt_from("sks man", 35, 40) == pytest.approx({now: 0.75, young: 0.25})  # a quarter of the way to 20
    assert captioning.prompt_from("sks man", 20, 40) == young
    teens = {"a portrait photo of a young man, age 10s": 0.5, "a portrait photo of a young man, age 20s": 0.5}
    assert captioning.prompt_from("a man", 15, 40) == captioning.prompt_from("a man", 15, 18) == pytest.approx(teens)
    assert Captioning(ages=(30, 80)).prompt_from("a man", 35, 40) == Captioning(ages=(30, 80)).prompt("a man", 35)


@pytest.mark.parametrize(
    ("subject", "age", "current"),
    [("a man", 34, 34.2), ("a man", 5, 30), ("a man", 30, 65), ("a man", 20, 10), ("a man", 8, 5), ("sks", 20, 30),
     ("sks", 40, 30)],
)  # fmt: skip
def test_elsewhere_an_ages_own_caption_leads_there(subject, age, current):
    assert Captioning().prompt_from(subject, age, current) == Captioning().prompt(subject, age)


def test_a_caption_that_the_adapter_never_saw_is_not_mixed_in():
    captioning = Captioning(ages=(10, 50))
    assert captioning.prompt_from("a man", 40, 30) == captioning.prompt("a man", 40)


def test_prompts_between_decades_are_mixed_of_captions_seen_in_training():
    assert Captioning().prompt("a man", 34) == pytest.approx(
        {"a portrait photo of a man, age 30s": 0.6, "a portrait photo of a man, age 40s": 0.4}
    )
    followed = Captioning(old=65)
    assert Captioning(child=0).prompt("a man", 10) == "a portrait photo of a man, age 10s"
    assert followed.prompt("a man", 10) == "a portrait photo of a boy, age 10s"
    assert followed.prompt("a man", 12) == pytest.approx(
        {"a portrait photo of a boy, age 10s": 0.8, "a portrait photo of a man, age 20s": 0.2}
    )
    assert followed.prompt("a woman", 64) == pytest.approx(
        {"a portrait photo of a woman, age 60s": 0.6, "a portrait photo of an old woman, age 70s": 0.4}
    )


def test_the_first_adapter_with_a_template_says_how_ages_are_written():
    known = {"b": {"role": "identity"}, "a": {"template": "{age}", "ages": [2, 80], "role": "age"}, "c": {"template": "no"}}
    del known["c"]
    assert captioning_of(known) == Captioning("{age}", (2, 80))
    assert captioning_of({}) == captioning_of({"b": known["b"]}) == Captioning()


@pytest.mark.parametrize(
    "recorded",
    [{"template": 3}, {"ages": [2]}, {"ages": "2"}, {"ages": [0, 1e9]}, {"ages": [0, 10**9]}, {"ages": [9, 2]}, {"old": -1}],
)
def test_what_an_adapter_records_is_checked(recorded):
    with pytest.raises(InputError, match="^x: "):
        captioning_of({"x": {"template": "{age}", **recorded}})
