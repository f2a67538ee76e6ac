"""The verdict says in words what the findings say in numbers."""

import pytest

from lida.study.verdict import counted, verdict
from tests.study.conftest import findings


def test_the_verdict_answers_both_questions():
    best, ages, slope, sface, dlib, few, limit = verdict(findings())
    assert "Of 1 setting, '<b>x</b>'" in best and "64.6 of 100, that of doing nothing 62.1." in best
    assert (
        "by 12.0 years on average, the photograph itself by 22.0." in ages and "0.40 years older: they follow it in part" in slope
    )
    assert (
        "Yes, on average: sface sees a similarity of 0.60" in sface and "No, on average: dlib sees a similarity of 0.40" in dlib
    )
    assert "1 person was" in few and "5.5 years" in limit


def test_a_setting_that_is_worse_than_nothing_is_called_so():
    assert "no better than to leave" in verdict(findings(hcs=50.0))[0]
    assert not any("one year higher" in sentence for sentence in verdict(findings(years_per_year=None)))


@pytest.mark.parametrize("low, high, people, said", [
    (-7.0, -1.0, 6, "4.0 years nearer to the age asked for than those of 'y'; the 95 % interval of that difference is -7.0 to -1.0, which leaves out zero."),
    (-7.0, 1.0, 6, "may be chance"), (-4.0, -4.0, 1, "in one person."),
])  # fmt: skip
def test_a_difference_is_said_with_its_chance(low, high, people, said):
    line = {
        "setting": "<b>x</b>",
        "less": "y",
        "column": "age_error",
        "difference": -4.0,
        "low": low,
        "high": high,
        "people": people,
    }
    given = {**findings(), "differences": [line], "rows": [{"person": k} for k in range(people)]}
    sentences = verdict(given)
    assert any(said in sentence for sentence in sentences)
    assert any("says little" in sentence for sentence in sentences) == (people < 5)


def test_things_are_counted():
    assert [counted(n, "person", "people") for n in (1, 2)] == ["1 person", "2 people"] and counted(2, "seed") == "2 seeds"
