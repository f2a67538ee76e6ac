"""The rooms of lida: imports point down only, and the figure in docs/ is of the code as it is."""

import re
import sys

from conftest import ROOT

import lida

sys.path.append(str(ROOT / "docs"))
import rooms

FLOOR_OF = {room: number for number, floor in enumerate(rooms.FLOORS) for room in floor}


def test_every_room_has_a_floor():
    folders = {path.name for path in (ROOT / "lida").iterdir() if (path / "__init__.py").is_file()}
    assert folders - {"scripts"} == FLOOR_OF.keys() == rooms.SAYS.keys()


def test_imports_point_down_only():
    upward = [pair for pair in rooms.imports() if FLOOR_OF[pair[0]] <= FLOOR_OF[pair[1]]]
    assert not upward and rooms.imports()["aging", "nn"] > 0  # and the counting sees imports at all


def test_the_figure_is_of_this_code():
    assert (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8") == rooms.svg()


def test_type_checkers_see_each_public_name_in_its_room():
    stub = (ROOT / "lida" / "__init__.pyi").read_text(encoding="utf-8")
    seen = {name: room for room, name in re.findall(r"from \.([\w.]+) import (\w+) as \2\n", stub)}
    assert seen == {name: room for room, names in lida.HOMES.items() for name in names}
