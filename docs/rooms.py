"""Draw docs/rooms.svg, the rooms of lida and the imports between them, from the code: `python docs/rooms.py`."""

import ast
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "lida"
# From the ground up. A room imports from lower floors, and from nothing else.
FLOORS = (
    ("doors",),
    ("nn", "diffusion", "photos"),
    ("kernels", "adapters", "checkpoints", "data"),
    ("aging", "training"),
    ("study", "app"),
)
CORE = ("nn", "diffusion", "aging")
SAYS = {
    "doors": "pictures, JSON, arguments, files",
    "nn": "UNet, VAE, text, LoRA layer",
    "diffusion": "schedule, samplers, inversion",
    "photos": "masks, faces, captions, squares",
    "kernels": "faster forms",
    "adapters": "files, merging, comparison",
    "checkpoints": "models from disk and hub",
    "data": "folders, AAF, albums",
    "aging": "StableDiffusion, age_face",
    "training": "batches, state, monitor",
    "study": "evaluation",
    "app": "a page in the browser",
}


def imports() -> Counter:
    """Count the imports from room to room: (importing, imported) -> number of import statements.

    A __main__.py and lida/scripts are scripts: they stand above the rooms.
    """
    found: Counter = Counter()
    for path in (path for path in PACKAGE.glob("*/*.py") if path.parent.name in SAYS and path.name != "__main__.py"):
        room = path.parent.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                found[room, node.module.split(".")[0]] += 1
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("lida."):
                found[room, node.module.split(".")[1]] += 1
    return Counter({pair: count for pair, count in found.items() if pair[0] != pair[1] and pair[1] in SAYS})


def lines_of(room: str) -> int:
    """Count the lines of a room's Python files."""
    return sum(path.read_text(encoding="utf-8").count("\n") for path in (PACKAGE / room).glob("*.py"))


def svg() -> str:
    """Return the figure: a row of boxes a floor, the ground at the bottom, an arrow for each pair of rooms that import."""
    width, height, box_w, box_h, gap = 920, 110 * len(FLOORS) + 20, 200, 62, 110
    places = {}
    for number, floor in enumerate(FLOORS):
        top = height - 20 - box_h - gap * number
        left = (width - len(floor) * (box_w + 24) + 24) / 2
        places |= {room: (left + k * (box_w + 24), top) for k, room in enumerate(floor)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<style>.box{fill:#fff;stroke:#555}.core{fill:#fdf0d5;stroke:#b5651d}text{fill:#222}.small{font-size:12px;fill:#555}"
        "path{fill:none;stroke:#888;stroke-width:1}"
        "@media (prefers-color-scheme:dark){.box{fill:#22272e;stroke:#999}.core{fill:#4a3a1c;stroke:#d9a05b}text{fill:#eee}"
        ".small{fill:#bbb}path{stroke:#777}}</style>",
    ]
    for (upper, lower), count in sorted(imports().items()):
        (x0, y0), (x1, y1) = places[upper], places[lower]
        a, b, middle = x0 + box_w / 2, x1 + box_w / 2, (y0 + box_h + y1) / 2
        parts.append(f'<path d="M{a:.0f},{y0 + box_h} C{a:.0f},{middle:.0f} {b:.0f},{middle:.0f} {b:.0f},{y1}"/>')
    for room, (x, y) in places.items():
        kind = "core" if room in CORE else "box"
        parts.append(f'<rect class="{kind}" x="{x:.0f}" y="{y}" width="{box_w}" height="{box_h}" rx="6"/>')
        parts.append(f'<text x="{x + box_w / 2:.0f}" y="{y + 24}" text-anchor="middle" font-size="16">{room}</text>')
        parts.append(f'<text class="small" x="{x + box_w / 2:.0f}" y="{y + 43}" text-anchor="middle">{SAYS[room]}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_name("rooms.svg").write_text(svg(), encoding="utf-8")
    for (upper, lower), count in sorted(imports().items()):
        print(f"{upper:12} -> {lower:12} {count}")
    print({room: lines_of(room) for room in SAYS}, file=sys.stderr)
