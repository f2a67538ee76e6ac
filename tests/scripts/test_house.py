"""The rooms of lida: imports point down only, the figure in docs/ is of the code as it is, and tests/ mirrors lida/."""

import ast
import re
import sys
import tokenize

from conftest import ROOT

import lida

sys.path.append(str(ROOT / "docs"))
import rooms

FLOOR_OF = {room: number for number, floor in enumerate(rooms.FLOORS) for room in floor}
# The tests of a module `room/x` are in `room/test_x`, but those of these
TESTED_IN = {
    "adapters/__main__": "adapters/test_command_line", "scripts/adapters": "adapters/test_command_line",
    "app/__main__": "app/test_page",
}  # fmt: skip


def code_lines(path):
    """Return the numbers of the lines of a file that have code: not blank, no comment, no docstring."""
    quiet = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in quiet]
    docstrings = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, node.end_lineno + 1))
    return {line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - docstrings


def files_of(*rooms_):
    """Return the files of these rooms of lida; without rooms, of all but kernels, study and the scripts."""
    left_out = {"kernels", "study", "scripts", "weights"}
    of = {path: path.relative_to(ROOT / "lida").parts[0] for path in sorted((ROOT / "lida").rglob("*.py"))}
    return [path for path, room in of.items() if (room in rooms_ if rooms_ else room not in left_out)]


def test_the_library_stays_below_5000_lines_of_code_and_its_core_below_2500():
    everything = sum(len(code_lines(path)) for path in files_of())
    core = files_of("nn", "diffusion", "aging") + [ROOT / "lida" / "adapters" / name for name in ("merging.py", "combination.py")]
    assert 3000 < everything < 5000 and 1000 < sum(len(path.read_text().splitlines()) for path in core) < 2500


def test_no_function_has_more_than_60_lines_but_the_flags_of_a_script():
    for path in [*files_of(), *files_of("kernels", "study"), ROOT / "infer.py", ROOT / "train_lora.py"]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and node.name != "parse_args":
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


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


def test_each_module_has_its_tests_in_the_file_that_mirrors_it():
    modules = {path.relative_to(ROOT / "lida").with_suffix("") for path in (ROOT / "lida").rglob("*.py")}
    modules = {path for path in modules if path.name != "__init__" and path.parts[0] != "weights"}
    expected = {str(path): TESTED_IN.get(str(path), str(path.with_name(f"test_{path.name}"))) for path in modules}
    assert TESTED_IN.keys() <= expected.keys() and len(expected) > 60
    missing = {module: tests for module, tests in expected.items() if not (ROOT / "tests" / f"{tests}.py").is_file()}
    assert not missing, missing
