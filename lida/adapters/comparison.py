"""Where two adapters change the same, and how alike: layer by layer and block by block, before anything is painted.

Everything is computed from the factors, never from whole matrices. The numbers say where two adapters meet; of pictures, of the
years that one costs the other, they foretold nothing where that was measured (docs/tradeoff.md).
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .dialects import TEXT
from ..nn.lora import LowRank, thin_svd

MEASURES = ("cosine", "columns", "rows", "b_inside_a", "a_inside_b")
HEADINGS = ("layer", "norm a", "norm b", *MEASURES)


def part_of(path: str) -> str:
    """The block and the kind of a layer: "up self", "mid cross", "down other", "text"."""
    if path.startswith(TEXT):
        return "text"
    kind = {"attn1": "self", "attn2": "cross"}.get(m[1] if (m := re.search(r"\.(attn[12])\.", path)) else "", "other")
    return f"{path.split('_')[0]} {kind}" if re.match(r"(down|mid|up)_block", path) else f"ends {kind}"


def compare_layer(a: LowRank, b: LowRank) -> dict[str, float]:
    """Two changes of one weight.

    cosine: of the angle between them as vectors. columns, rows: mean squared cosine of the principal angles between their
    column spaces and their row spaces (Bjorck and Golub 1973), 0 for spaces at right angles and 1 where the smaller lies in
    the larger. b_inside_a: the share of b's energy that lies in both spaces of a; a_inside_b likewise.
    """
    (ua, sa, va), (ub, sb, vb) = (thin_svd(*layer.factors(torch.float64)) for layer in (a, b))
    norm_a, norm_b = float(sa.norm()), float(sb.norm())
    columns, rows = ua.T @ ub, va.T @ vb  # (ka, kb)
    smaller = min(columns.shape)
    within = columns @ torch.diag(sb) @ rows.T  # b seen in a's two bases: (ka, ka)
    within_b = columns.T @ torch.diag(sa) @ rows
    dot = float((torch.diag(sa) * within).sum())
    return {
        "norm_a": norm_a,
        "norm_b": norm_b,
        "dot": dot,
        "cosine": dot / (norm_a * norm_b) if smaller else 0.0,
        "columns": float(columns.square().sum()) / smaller if smaller else 0.0,
        "rows": float(rows.square().sum()) / smaller if smaller else 0.0,
        "b_inside_a": float(within.square().sum()) / norm_b**2 if smaller else 0.0,
        "a_inside_b": float(within_b.square().sum()) / norm_a**2 if smaller else 0.0,
    }


def compare(a, b) -> dict[str, dict]:
    """The report on two Adapters: `layers` by path (those that both change), `parts` by block and kind, and `all`.

    A part's norms are of all its layers together, those that only one changes included; its cosine is of them as one vector;
    its other measures are means over the common layers, weighted by the product of the norms. Raises ValueError where a
    layer has another shape in one than in the other.
    """
    layers, report = {}, {"layers": {}, "parts": {}, "all": {}}
    for path in (path for path in a.layers if path in b.layers):
        sizes = [(x.layers[path].shape[0], math.prod(x.layers[path].shape[1:])) for x in (a, b)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{path}: changes a weight {a.layers[path].shape} in one, {b.layers[path].shape} in the other")
        layers[path] = compare_layer(a.layers[path], b.layers[path])
    for path in a.layers.keys() ^ b.layers.keys():
        norms = {
            name: float(thin_svd(*x.layers[path].factors(torch.float64))[1].norm()) if path in x.layers else 0.0
            for name, x in (("norm_a", a), ("norm_b", b))
        }
        layers[path] = {**norms, "dot": 0.0, **dict.fromkeys(MEASURES, 0.0)}
    report["layers"] = {path: layers[path] for path in (*a.layers, *(p for p in b.layers if p not in a.layers))}
    names = {path: part_of(path) for path in layers}
    for part in sorted(set(names.values())):
        report["parts"][part] = together([row for path, row in layers.items() if names[path] == part])
    report["all"] = together(list(layers.values()))
    return report


def together(rows: list[dict[str, float]]) -> dict[str, float]:
    """Several layers as one."""
    norm_a, norm_b = (math.sqrt(sum(row[name] ** 2 for row in rows)) for name in ("norm_a", "norm_b"))
    weights = [row["norm_a"] * row["norm_b"] for row in rows]
    total, dot = sum(weights), sum(row["dot"] for row in rows)
    means = {name: sum(w * row[name] for w, row in zip(weights, rows)) / total if total else 0.0 for name in MEASURES[1:]}
    return {"norm_a": norm_a, "norm_b": norm_b, "dot": dot, "cosine": dot / (norm_a * norm_b) if total else 0.0, **means}


def table(report: dict) -> str:
    """The parts and the whole, as text."""
    lines = [f"{HEADINGS[0]:<12}" + "".join(f"{heading:>12}" for heading in HEADINGS[1:])]
    for part, row in (*report["parts"].items(), ("all", report["all"])):
        lines.append(f"{part:<12}" + "".join(f"{row[heading.replace(' ', '_')]:>12.3f}" for heading in HEADINGS[1:]))
    return "\n".join(lines)


def heat_map(report: dict) -> Image.Image:
    """Every layer a row, every measure a column; blue at -1, white at 0, red at 1."""
    rows, names = list(report["layers"].values()), list(report["layers"])
    height, label, width = 14, 480, 90
    image = Image.new("RGB", (label + width * len(MEASURES), 24 + height * len(rows)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=11)
    for column, measure in enumerate(MEASURES):
        draw.text((label + width * (column + 0.5), 12), measure, fill="black", font=font, anchor="mm")
    for number, (name, row) in enumerate(zip(names, rows)):
        top = 24 + height * number
        draw.text((label - 6, top + height / 2), name, fill="black", font=font, anchor="rm")
        for column, measure in enumerate(MEASURES):
            value = float(np.clip(row[measure], -1, 1))
            pale = round(255 * (1 - abs(value)))
            left = label + width * column
            draw.rectangle(
                [left, top, left + width - 2, top + height - 2], (255, pale, pale) if value > 0 else (pale, pale, 255)
            )
            draw.text((left + width / 2, top + height / 2), f"{row[measure]:.2f}", fill="black", font=font, anchor="mm")
    return image


def write_report(report: dict, folder: str | Path, say: Callable[[str], None] = print) -> None:
    """report.json, table.txt and heat-map.png in the folder; `say` gets the table."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (folder / "table.txt").write_text(table(report) + "\n", encoding="utf-8")
    heat_map(report).save(folder / "heat-map.png")
    say(table(report))
