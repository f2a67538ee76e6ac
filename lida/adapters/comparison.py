"""Where two adapters change the same weights, and how alike: layer by layer and block by block.

Everything is computed from the factors, never from whole matrices. The numbers describe weights. They did not predict pictures,
neither identity nor years lost, where that was measured (docs/tradeoff.md).
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..doors.files import output_folder, write_json, write_text
from ..doors.pictures import save_image
from ..nn.lora import LowRank, thin_svd
from .adapter import Adapter, frobenius
from .dialects import block_of

MEASURES = ("cosine", "columns", "rows", "b_inside_a", "a_inside_b")
HEADINGS = ("layer", "norm a", "norm b", *MEASURES)


def part_of(path: str) -> str:
    """Return the block and the kind of a layer: "up self", "mid cross", "down other", "text"."""
    block, attention = block_of(path), re.search(r"\.attn([12])\.", path)
    kind = {"1": "self", "2": "cross"}[attention[1]] if attention else "other"
    return block if block == "text" else f"{block} {kind}"


def compare_layer(a: LowRank, b: LowRank) -> dict[str, float]:
    """Measure two changes of one weight.

    norm_a, norm_b: Frobenius norms. dot: their inner product. cosine: of the angle between them as vectors. columns, rows: the
    mean squared cosine of the principal angles between their column spaces and between their row spaces (Bjorck and Golub
    1973), 0 for orthogonal spaces and 1 if the smaller lies in the larger. b_inside_a: the share of b's energy that lies in
    both spaces of a; a_inside_b likewise.
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


def compare(a: Adapter, b: Adapter) -> dict[str, dict]:
    """Return a report on two adapters: `layers` by path, `parts` by block and kind, and `all`.

    A part counts as one long vector of all its layers: so are its norms and its cosine, layers that only one adapter changes
    included. Its other measures are means over the common layers, weighted by the product of the norms. Raises ValueError if a
    layer has one shape in a and another in b.
    """
    layers, report = {}, {"layers": {}, "parts": {}, "all": {}}
    for path in (path for path in a.layers if path in b.layers):
        sizes = [(x.layers[path].shape[0], math.prod(x.layers[path].shape[1:])) for x in (a, b)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{path}: changes a weight {a.layers[path].shape} in one, {b.layers[path].shape} in the other")
        layers[path] = compare_layer(a.layers[path], b.layers[path])
    for path in a.layers.keys() ^ b.layers.keys():
        norms = [frobenius(x.layers[path]) if path in x.layers else 0.0 for x in (a, b)]
        layers[path] = {"norm_a": norms[0], "norm_b": norms[1], "dot": 0.0, **dict.fromkeys(MEASURES, 0.0)}
    report["layers"] = {path: layers[path] for path in (*a.layers, *(p for p in b.layers if p not in a.layers))}
    names = {path: part_of(path) for path in layers}
    for part in sorted(set(names.values())):
        report["parts"][part] = together([row for path, row in layers.items() if names[path] == part])
    report["all"] = together(list(layers.values()))
    return report


def together(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the measures of several layers as one part."""
    norm_a, norm_b = (math.sqrt(sum(row[name] ** 2 for row in rows)) for name in ("norm_a", "norm_b"))
    weights = [row["norm_a"] * row["norm_b"] for row in rows]
    total, dot = sum(weights), sum(row["dot"] for row in rows)
    means = {name: sum(w * row[name] for w, row in zip(weights, rows)) / total if total else 0.0 for name in MEASURES[1:]}
    return {"norm_a": norm_a, "norm_b": norm_b, "dot": dot, "cosine": dot / (norm_a * norm_b) if total else 0.0, **means}


def table(report: dict) -> str:
    """Return the measures of the parts and of the whole as text."""
    lines = [f"{HEADINGS[0]:<12}" + "".join(f"{heading:>12}" for heading in HEADINGS[1:])]
    for part, row in (*report["parts"].items(), ("all", report["all"])):
        lines.append(f"{part:<12}" + "".join(f"{row[heading.replace(' ', '_')]:>12.3f}" for heading in HEADINGS[1:]))
    return "\n".join(lines)


def heat_map(report: dict) -> Image.Image:
    """Draw a row for each layer and a column for each measure: blue at -1, white at 0, red at 1."""
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


def write_report(report: dict, folder: str | Path) -> None:
    """Write report.json, table.txt and heat-map.png into the folder."""
    folder = output_folder(folder, "-o")
    write_json(folder / "report.json", report)
    write_text(folder / "table.txt", table(report) + "\n")
    save_image(heat_map(report), folder / "heat-map.png")
