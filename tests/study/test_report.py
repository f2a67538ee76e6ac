"""The report: the table in CSV and HTML, and the pictures."""

import csv
import json
import re

import pytest
from PIL import Image

from lida.study.report import cell, table_of_pictures, write_report
from tests.study.conftest import findings


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


def test_pictures_lie_where_their_headings_say():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    page = table_of_pictures([[red, None], [None, blue]], ["a", "b"], ["x", "y"], side=16)
    assert page.size == (170 + 2 * 19, 26 + 2 * 19)
    assert [page.getpixel((170 + 8 + 19 * k, 26 + 8 + 19 * k)) for k in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    assert page.getpixel((170 + 8 + 19, 26 + 8)) == (255, 255, 255)
