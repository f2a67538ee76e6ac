"""The report: the table in CSV and HTML, and the verdict."""

import csv
import json
import re

import pytest
from PIL import Image

from lida.study.report import cell, table_of_pictures, write_report
from lida.study.verdict import counted, verdict

LINE = {"family": "f", "control": False, "identity": "1.0", "age": "0.2", "pictures": 3, "face": 1.0, "largest_change_outside": 0}
NUMBERS = {"similarity_input": 0.6, "similarity_target": None, "similarity_input:dlib": 0.4, "age_error": 12.0, "hcs": 64.6}


def findings(**best) -> dict:
    """Findings of one person: one setting, doing nothing, and neutral values for the rest."""
    nothing = {
        **LINE,
        **NUMBERS,
        "setting": "do nothing",
        "control": True,
        "similarity_input": 1.0,
        "age_error": 22.0,
        "hcs": 62.1,
    }
    table = [
        {**LINE, **NUMBERS, "setting": "<b>x</b>", "years_per_year": 0.4, **best},
        {**nothing, "years_per_year": float("nan")},
    ]
    judge = {"name": "reader", "mean_error": 5.5, "faces": 1, "references": 0, "references_error": None}
    identity = [{"name": "sface", "measure": "cosine", "same": 0.363}, {"name": "dlib", "measure": "d", "same": 0.5}]
    return {
        "what": "1 person.", "base": {}, "judges": [judge], "identity_judges": identity, "table": table,
        "meanings": {"<b>x</b>": "words & more", "do nothing": "nothing"}, "areas": [], "differences": [], "interference": [],
        "rows": [{"person": "a"}],
    }  # fmt: skip


@pytest.mark.parametrize("value, expected", [
    ("=1+1", "'=1+1"), ("@x", "'@x"), ("+cmd", "'+cmd"), ("-x", "'-x"), ("-1+2", "'-1+2"), ("\tx", "'\tx"), ("-0.5", "-0.5"),
    ("+5", "+5"), ("a=b", "a=b"), ("", ""), (-1.23456, -1.2346), (None, None), (3, 3), (True, True),
])  # fmt: skip
def test_no_cell_is_a_formula(value, expected):
    assert cell(value) == expected


def test_the_files_say_the_same(tmp_path):
    given = findings()
    said = write_report(tmp_path, given, Image.new("RGB", (20, 20)), {"anna": Image.new("RGB", (20, 20))})
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["setting"] for line in lines] == ["<b>x</b>", "do nothing"] and lines[0]["similarity_input"] == "0.6"
    assert lines[0]["similarity_target"] == lines[1]["years_per_year"] == ""
    found = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert found["table"][1]["years_per_year"] is None and found["verdict"] == said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>x</b>" not in page.replace("<b>&lt;b&gt;x&lt;/b&gt;</b>", "") and "words &amp; more" in page
    assert page.count('src="data:image/jpeg;base64,') == 3 and not re.search('(src|href)="(?!data:)', page)  # curve, grid, anna
    assert page.index("<h2>Rows</h2>") < page.index("<h2>Verdict</h2>") and "on 1 real face that" in page
    assert all(sentence.split("'")[0] in page for sentence in said)
    assert Image.open(tmp_path / "grid.png").size == (20, 20) and Image.open(tmp_path / "curve.png").width > 300


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


def test_pictures_lie_where_their_headings_say():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    page = table_of_pictures([[red, None], [None, blue]], ["a", "b"], ["x", "y"], side=16)
    assert page.size == (170 + 2 * 19, 26 + 2 * 19)
    assert [page.getpixel((170 + 8 + 19 * k, 26 + 8 + 19 * k)) for k in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    assert page.getpixel((170 + 8 + 19, 26 + 8)) == (255, 255, 255)
