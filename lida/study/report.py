"""The files of an evaluation: table.csv, table.json, curve.png, grid.png, and report.html with all of them."""

import base64
import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageDraw, ImageFont

from ..doors.files import write_json, write_text
from ..doors.pictures import open_image, save_image
from .verdict import counted, verdict

EXPLAINED = {
    "age_error": "years between the age read and the age asked for",
    "age_error_real": "years between the age read and what the judge reads, on average, of real faces of that age",
    "spearman": "rank correlation of age asked for and age read, within each row of pictures",
    "years_per_year": "slope of the age read against the age asked for: 1 follows it, 0 ignores it",
    "similarity_input": "similarity to the photograph that was aged; doing nothing has 1",
    "similarity_target": "similarity to real photographs near the age asked for, which no adapter was trained on",
    "similarity_back": "similarity to the photograph after aging there and back",
    "face": "share of pictures in which a face is found; without one the similarity counts as 0",
    "largest_change_outside": "largest change of a pixel where the mask is black, of 255",
    "psnr_inside": "PSNR against the photograph where the mask is not black, in dB",
    "hcs": "2 A I / (A + I) with A = 100 (1 - age_error / 40), I = 100 similarity_input (Cradle2Cane's score)",
    "hcs_target": "the same with similarity_target, over the pictures that have one",
}
TITLES = {
    "areas": "Area under the trade-off (95 % bootstrap intervals over people)",
    "differences": "Against the first setting (means over people, 95 % bootstrap intervals)",
    "interference": "Does the adapters' overlap predict the loss of age? Rank correlations over people and adapters",
}
FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d*\.?\d+$)")  # what spreadsheets take for a formula
HIDDEN = ("family", "control", "identity", "age")  # columns of the table that the report's rows explain


def write_report(folder: Path, findings: dict, grid: Image.Image | None, sheets: dict[str, Image.Image]) -> list[str]:
    """Write the files, and return the verdict.

    `findings` has the keys what, judges, identity_judges, table, meanings, rows and those of TITLES. `grid` is the picture of
    grid.png; `sheets` has a picture for each person.
    """
    findings = without_nan(findings)
    findings["verdict"] = verdict(findings)
    columns = list(dict.fromkeys(column for line in findings["table"] for column in line))
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *([cell(line.get(name)) for name in columns] for line in findings["table"])])
    write_text(folder / "table.csv", text.getvalue())
    write_json(folder / "table.json", findings, indent=1)
    draw_curve(findings, folder / "curve.png")
    pictures = {"The trade-off": open_image(folder / "curve.png")}
    if grid is not None:
        save_image(grid, folder / "grid.png")
        pictures["Age weight by identity weight"] = grid
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"shown": shown, "embedded": embedded, "counted": counted}
    page = environment.get_template("template.html").render(
        findings, findings=findings, columns=[name for name in columns if name not in HIDDEN], explained=EXPLAINED, titles=TITLES,
        pictures=pictures | sheets,
    )  # fmt: skip
    write_text(folder / "report.html", page)
    return findings["verdict"]


def without_nan(value: Any) -> Any:
    """Return the value with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def cell(value: object) -> object:
    """Return a value for a CSV file: numbers to four places, and an apostrophe before text that would be a formula."""
    if isinstance(value, str) and FORMULA.match(value):
        return f"'{value}"
    return round(value, 4) if isinstance(value, float) else value


def shown(value: object) -> str:
    """Return a value as the page shows it."""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return "–" if value is None else str(value)


def embedded(picture: Image.Image) -> str:
    """Return a picture as a data URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_curve(findings: dict, path: Path) -> None:
    """Draw age error against similarity, to the input and to photographs near the age: a line per family, a cross per control."""
    table = findings["table"]
    columns = [c for c in ("similarity_input", "similarity_target") if any(line.get(c) is not None for line in table)]
    figure = Figure(figsize=(7 * len(columns), 6), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns):
        lines_of: dict[tuple, list[dict]] = {}  # by family and weight of identity
        for line in table:
            if line.get(column) is not None:
                lines_of.setdefault((line["family"], line["identity"]), []).append(line)
        families = list(dict.fromkeys(lines[0]["family"] for lines in lines_of.values() if not lines[0]["control"]))
        for (family, _), lines in lines_of.items():
            style = {"marker": "x", "linestyle": "", "color": "grey"}
            if family in families:
                style = {"marker": "o", "color": f"C{families.index(family) % 10}"}
            axes.plot([line[column] for line in lines], [line["age_error"] for line in lines], **style)
            for line in lines:
                label = line["setting"].removeprefix(family).strip() or family
                axes.annotate(label, (line[column], line["age_error"]), fontsize=7, xytext=(4, 3), textcoords="offset points")
        handles = [Line2D([], [], marker="o", color=f"C{number % 10}") for number in range(len(families))]
        axes.legend(handles, families, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(EXPLAINED[column].partition(",")[0].partition(";")[0] + f" ({findings['identity_judges'][0]['name']})")
        axes.set_ylabel(f"age error in years ({findings['judges'][0]['name']}); better is up and right")
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    save_image(Image.open(buffer), path)


def table_of_pictures(
    rows: Sequence[Sequence[Image.Image | None]], left: Sequence[str], top: Sequence[str], side: int = 128
) -> Image.Image:
    """Return pictures in rows under headings."""
    font, margin, head, gap = ImageFont.load_default(size=13), 170, 26, 3
    page = Image.new("RGB", (margin + len(top) * (side + gap), head + len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(page)
    for column, heading in enumerate(top):
        draw.text((margin + column * (side + gap) + side / 2, head / 2), heading, "black", font, anchor="mm")
    for row, (label, pictures) in enumerate(zip(left, rows)):
        draw.text((margin - 8, head + row * (side + gap) + side / 2), label, "black", font, anchor="rm")
        for column, picture in enumerate(pictures):
            if picture is not None:
                small = picture.resize((side, side), Image.Resampling.LANCZOS)
                page.paste(small, (margin + column * (side + gap), head + row * (side + gap)))
    return page


def text_table(table: Sequence[dict]) -> str:
    """Return the main columns, for a terminal."""
    names = ("age_error", "years_per_year", "similarity_input", "similarity_target", "similarity_back", "face", "hcs")
    columns = [name for name in names if name in table[0]]
    lines = [f"{'setting':<34}" + "".join(f"{column:>19}" for column in columns)]
    lines += [f"{line['setting']:<34}" + "".join(f"{shown(line.get(column)):>19}" for column in columns) for line in table]
    return "\n".join(lines)
