"""How settings are written, which ones are in every table, and which are refused."""

import json
from dataclasses import replace

import pytest

from lida.adapters.spelling import parse_weight
from lida.aging import Edit
from lida.diffusion import Sampling
from lida.doors.errors import InputError
from lida.study.rules import parse_rule
from lida.study.settings import NEGATIVES, Setting, compared_settings, grid_of, read_setting, spelled

NEUTRAL = Edit(**NEGATIVES["neutral"])
PLAIN = Setting("plain", "plain", adapter="plain", sampling=Sampling(20, 3.0), edit=Edit(detail=0.0, **NEGATIVES["nothing"]))


def settings(identities=("1.0",), ages=("0.2",), more=(), adapters=("plain",)) -> list[Setting]:
    weights = [list(map(parse_weight, texts)) for texts in (identities, ages)]
    return compared_settings(PLAIN, grid_of(PLAIN, *weights, [parse_rule("sum")], adapters), more, adapters)


def test_settings_are_the_grid_and_more_and_the_default_and_the_controls():
    found = settings(("0", "1"), ("0.2", "1@600-0"), ["held one: age=0.5 family=held within=0.6"])
    names = ["sum 0.0 0.2", "sum 0.0 1.0@600-0", "sum 1.0 0.2", "sum 1.0 1.0@600-0", "held one", "default", "do nothing"]
    assert [setting.name for setting in found[:7]] == names and all(setting.control for setting in found[6:])
    held = found[4]
    assert (held.identity, held.age, held.family, held.within, held.adapter) == (1.0, 0.5, "held", 0.6, "plain")
    assert {s.name: s.random for s in found if s.random} == {"random identity": "identity", "random age": "age"}
    assert [s.name for s in found if not s.paints] == ["do nothing", "ceiling"]


def test_the_default_is_infers_and_does_not_come_twice():
    default = settings()[1]
    assert default.edit == Edit() and default.sampling.guidance_scale == Sampling().guidance_scale
    assert (default.identity, default.age) == (0.0, 1.0)
    same = f"mine: identity=0.0 age=1.0 guidance_scale={Sampling().guidance_scale} negative=age detail=years"
    assert [setting.name for setting in settings((), (), [same])][:2] == ["mine", "do nothing"]


def test_a_spelled_setting_changes_what_it_names_and_no_more():
    text = "x: identity=0.5,up=1 rule=ties:0.3 guidance_interval=0.3-2 guidance_rescale=0.3 eta=0.5 strength=0.4 detail=0.5 negative=neutral"
    expected = replace(
        PLAIN, name="x", family="x", identity={"default": 0.5, "up": 1.0}, rule=parse_rule("ties:0.3"),
        sampling=Sampling(20, 3.0, 0.3, (0.3, 2.0), eta=0.5), edit=replace(NEUTRAL, strength=0.4, detail=0.5),
    )  # fmt: skip
    assert read_setting(text, PLAIN) == expected


def test_prompts_name_the_subject():
    edit = replace(PLAIN, edit=NEUTRAL).edit_for("a man")
    assert edit == Edit(source_prompt="a portrait photo of a man", negative_prompt="a portrait photo of a man")
    assert replace(PLAIN, edit=Edit()).edit_for("a man") == Edit()


def test_a_record_is_json_and_differs_for_other_pictures():
    record = PLAIN.record()
    assert json.loads(json.dumps(record)) == record
    changes = {"identity": 0.3, "age": parse_weight("1@9-0"), "rule": parse_rule("ties"), "adapter": "x", "within": 0.5}
    changes |= {"sampling": Sampling(20, 3.5), "edit": Edit(), "random": "age"}
    assert all(replace(PLAIN, **{name: value}).record() != record for name, value in changes.items())
    assert replace(PLAIN, family="another", control=True).record() == record  # these change no picture


@pytest.mark.parametrize("setting, said", [
    (PLAIN, "the identity adapter plain at 1.0 and the age adapter at 0.2, by sum; flow_edit; guidance 3 away from the empty prompt; detail 0"),
    (replace(PLAIN, within=0.6), "at 1.0 in the middle 60% of the mask and"), (replace(PLAIN, random="age"), "a random age adapter"),
    (replace(PLAIN, edit=NEUTRAL), "away from the prompt without an age; detail 1"), (replace(PLAIN, edit=Edit()), "away from the caption of the current age"),
    (replace(PLAIN, name="do nothing"), "the photograph itself, counted as the aged picture"),
])  # fmt: skip
def test_a_setting_is_put_in_words(setting, said):
    assert said in setting.meaning


@pytest.mark.parametrize("more, said", [
    (["a: ages=1"], "'ages' is not one of"), (["a: age=much"], "'much' is not a finite"), (["a: rule=max"], "rule 'max'"),
    (["a: adapter=held"], "no adapter 'held'"), (["a: within=2"], "from 0 to 1"), ([": age=1"], "the name ''"),
    (["a: negative=old"], "negative 'old'"), (["a: age=1", "a: age=2"], "two settings"), (["a/b: age=1"], "be a folder's"),
    (["a: identity=1@500-0 within=0.5"], "within is a share"), (["a: guidance_scale=x"], "'x' is not a number"),
    (["a: guidance_interval=3"], "'' is not a number"), (["a: guidance_interval=3-1"], "the lower first"),
    (["a: scheduler=best"], "scheduler 'best'"), (["a: strength=0"], "'0' is not a number above 0"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(more, said):
    with pytest.raises(InputError, match=said):
        settings(more=more)


def test_an_identity_weight_without_an_adapter_is_refused():
    with pytest.raises(InputError, match="no identity adapter"):
        compared_settings(PLAIN, grid_of(PLAIN, [1.0], [0.2], [parse_rule("sum")], []), [], [])
    with pytest.raises(InputError, match="no setting is given"):
        compared_settings(PLAIN, [], [], [])


@pytest.mark.parametrize("text", ["0.2", "1.0@600-0", "1.0@600-0,up=0.5", "-0.1,mid=2.0@999-601"])
def test_weights_are_spelled_as_they_are_read(text):
    assert spelled(parse_weight(text)) == text
