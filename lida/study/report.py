"""What an evaluation found, on paper: table.csv and table.json, curve.png, grid.png, and report.html with all of it."""

import base64
import csv
import html
import io
import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..doors.files import written_whole
from ..doors.pictures import save_image

MISSING = "–"
EXPLAINED = {
    "age_error": "years between the age read and the age asked for",
    "age_error_real": "years between the age read and what the judge reads, on average, of real faces of that age",
    "spearman": "rank correlation of age asked for and age read, within each row of pictures",
    "years_per_year": "slope of the age read against the age asked for: 1 follows it, 0 ignores it",
    "cosine_input": "identity cosine to the photograph that was aged; doing nothing has 1",
    "cosine_target": "identity cosine to real photographs near the age asked for, which no adapter has seen",
    "cosine_back": "identity cosine to the photograph after aging there and back",
    "face": "share of pictures in which a face is found; without one the cosine counts as 0",
    "largest_change_outside": "largest change of a pixel where the mask is black, of 255",
    "psnr_inside": "dB where the mask is not black",
    "hcs": "2 A I / (A + I) with A = 100 (1 - age_error / 40), I = 100 cosine_input (Cradle2Cane's score)",
    "hcs_target": "the same with cosine_target, over the pictures that have one",
}


def write_report(folder: Path, findings: dict, sheets: dict[str, Image.Image], grid: Image.Image | None) -> None:
    """The files. `findings` has judges, table, areas, differences, interference and rows; `sheets` a picture a person."""
    table = findings["table"]
    columns = list(dict.fromkeys(column for line in table for column in line))
    with written_whole(folder / "table.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({k: rounded(v) for k, v in line.items()} for line in table)
    with written_whole(folder / "table.json") as part:
        part.write_text(json.dumps(without_nan(findings), indent=1) + "\n", encoding="utf-8")
    pictures = {}
    if find_spec("matplotlib") is None:
        print("no curve.png: matplotlib is not installed, pip install lida-aging[charts]")
    else:
        draw_curve(findings, folder / "curve.png")
        pictures["The trade-off"] = Image.open(folder / "curve.png").convert("RGB")
    if grid is not None:
        save_image(grid, folder / "grid.png")
        pictures["Age weight by identity weight"] = grid
    with written_whole(folder / "report.html") as part:
        part.write_text(page(findings, columns, {**pictures, **sheets}), encoding="utf-8")


def rounded(value: object) -> object:
    """A number to four places, nothing for one that is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 4)
    return "" if value is None else value


def without_nan(value: object) -> object:
    """For JSON, which has no nan."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def shown(value: object) -> str:
    """As the page has it."""
    value = rounded(value)
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return MISSING if value == "" else str(value)


def draw_curve(findings: dict, path: Path) -> None:
    """Age error against identity cosine, to the input and to photographs near the age: a line a family, a cross a control."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = [c for c in ("cosine_input", "cosine_target") if any(known(line.get(c)) for line in findings["table"])]
    figure = Figure(figsize=(7 * len(columns), 6), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns):
        lines_of: dict[tuple, list[dict]] = {}  # by family and weight of identity
        for line in findings["table"]:
            if known(line.get(column)):
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
        axes.set_xlabel(EXPLAINED[column].partition(",")[0].partition(";")[0])
        axes.set_ylabel(f"age error in years ({findings['judges'][0]['name']}); better is up and right")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def known(value: object) -> bool:
    """Whether there is a number."""
    return isinstance(value, int | float) and math.isfinite(value)


def table_of_pictures(
    rows: Sequence[Sequence[Image.Image | None]], left: Sequence[str], top: Sequence[str], side: int = 128
) -> Image.Image:
    """Pictures in rows under headings."""
    font, margin, head, gap = ImageFont.load_default(size=13), 170, 26, 3
    width = len(top)
    page = Image.new("RGB", (margin + width * (side + gap), head + len(rows) * (side + gap)), "white")
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
    """The main columns, for a terminal."""
    columns = [
        c
        for c in ("age_error", "years_per_year", "cosine_input", "cosine_target", "cosine_back", "face", "hcs")
        if c in table[0]
    ]
    lines = [f"{'setting':<34}" + "".join(f"{column:>15}" for column in columns)]
    for line in table:
        lines.append(f"{line['setting']:<34}" + "".join(f"{shown(line.get(column)):>15}" for column in columns))
    return "\n".join(lines)


def html_table(lines: Sequence[dict], columns: Sequence[str]) -> str:
    """Rows under their headings, each heading with its explanation."""
    heads = ""
    for column in columns:
        name = column.replace("_", " ").replace(":", ", ")  # with spaces, so that it may be broken
        heads += f'<th title="{html.escape(EXPLAINED.get(column.partition(":")[0], ""))}">{html.escape(name)}</th>'
    body = "".join(
        f'<tr class="{"control" if line.get("control") else ""}">'
        + "".join(f"<td>{html.escape(shown(line.get(column)))}</td>" for column in columns)
        + "</tr>"
        for line in lines
    )
    return f"<table><tr>{heads}</tr>{body}</table>"


def embedded(picture: Image.Image) -> str:
    """As a data URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def said_of(judge: dict) -> str:
    """How far a judge errs on real faces."""
    parts = []
    if known(judge["mean_error"]):
        parts.append(f"{judge['mean_error']:.1f} years on {judge['faces']} real faces that it was measured on")
    if judge["references"]:
        parts.append(f"{judge['references_error']:.1f} years on {judge['references']} photographs of the people here")
    return f"{judge['name']}: mean error {' and '.join(parts) or 'not known'}"


def page(findings: dict, columns: Sequence[str], pictures: dict[str, Image.Image]) -> str:
    """The report as one file of HTML."""
    first = [c for c in columns if c not in ("family", "control", "identity", "age")]
    used = {name.replace("_", " "): text for name, text in EXPLAINED.items() if name in columns}
    explained = "".join(f"<li><b>{name}</b>: {html.escape(text)}</li>" for name, text in used.items())
    judges = "".join(f"<li>{html.escape(said_of(judge))}</li>" for judge in findings["judges"])
    drawn = "".join(f'<h2>{html.escape(title)}</h2><img src="{embedded(picture)}">' for title, picture in pictures.items())
    more = ""
    for title, key in (
        ("Area under the trade-off (95 % bootstrap intervals over people)", "areas"),
        ("Against the first setting (mean over people, 95 % bootstrap intervals)", "differences"),
        ("Do the adapters' overlaps foretell the loss of age? Rank correlations over people and adapters", "interference"),
    ):
        if findings[key]:
            more += f"<h2>{title}</h2>{html_table(findings[key], list(findings[key][0]))}"
    return f"""<!doctype html><meta charset="utf-8"><title>Age and identity</title>
<style>body{{font:14px sans-serif;margin:2em;max-width:1500px}}table{{border-collapse:collapse}}td,th{{padding:3px 6px;
border-bottom:1px solid #ddd;text-align:right;font-size:12px;max-width:7em}}td:first-child,th:first-child{{text-align:left;
max-width:none;white-space:nowrap}}
.control{{color:#777}}img{{max-width:100%}}</style>
<h1>Does it age, and is it still the same person?</h1>
<p>{html.escape(findings["what"])} Grey lines are controls; <i>ceiling</i> is what the real person's own photographs near each
age would score. Ages are read by</p><ul>{judges}</ul><p>and persons told apart by
{html.escape(findings["identity_judge"])}.</p>
{html_table(findings["table"], first)}<ul>{explained}</ul>{drawn}{more}"""
