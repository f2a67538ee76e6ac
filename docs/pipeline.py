"""Draw docs/pipeline.svg, the way of a photograph and the two trainings: `python docs/pipeline.py`."""

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 850, 540
STYLE = """
text{fill:#1f2328;font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:13px}
.head{font-size:15px;font-weight:600}.title{font-weight:600}.file{font-family:ui-monospace,'DejaVu Sans Mono',monospace;
font-size:11px;fill:#57606a}.page{fill:#fff}.panel{fill:#f6f8fa;stroke:#d0d7de}.box{fill:#fff;stroke:#6e7781}
.age{fill:#ffe8cc;stroke:#c2660a}.id{fill:#dbeafe;stroke:#2563c9}.way{fill:none;stroke:#57606a;stroke-width:1.6}
.way.age{fill:none;stroke:#c2660a}.way.id{fill:none;stroke:#2563c9}.tip{fill:#57606a}.tip.age{fill:#c2660a}.tip.id{fill:#2563c9}
.skin{fill:#f2c9a5;stroke:#8a5a34}.young{fill:#4b3a2f}.old{fill:#c9cdd2;stroke:#8b949e}.line{fill:none;stroke:#8a5a34;
stroke-width:1.3}.dark{fill:#24292f}.white{fill:#fff}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.file{fill:#9da7b3}.page{fill:#0d1117}.panel{fill:#161b22;stroke:#30363d}
.box{fill:#21262d;stroke:#7d8590}.age{fill:#4a2f12;stroke:#e8973e}.id{fill:#14305c;stroke:#6ea8fe}.way{stroke:#9da7b3}
.way.age{stroke:#e8973e}.way.id{stroke:#6ea8fe}.tip{fill:#9da7b3}.tip.age{fill:#e8973e}.tip.id{fill:#6ea8fe}.dark{fill:#000;
stroke:#7d8590}}
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Return a line of text about x."""
    return f'<text x="{x}" y="{y}" text-anchor="middle" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, w: float, h: float, title: str, *lines: str, file: str = "", kind: str = "box") -> str:
    """Return a box with a title, lines and a file's name, centred."""
    rows = [(title, "title"), *((line, "") for line in lines), *((name, "file") for name in file.split())]
    first = y + h / 2 - 8.5 * len(rows) + 13
    words = [text(x + w / 2, first + 17 * k, *row) for k, row in enumerate(rows)]
    return "\n".join([f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" class="{kind}"/>', *words])


def arrow(*points: tuple[float, float], kind: str = "") -> str:
    """Return a line through the points, with a tip at the last one."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = ((x > x0) - (x < x0)) * 8, ((y > y0) - (y < y0)) * 8  # the lines run along the axes
    tip = f"{x},{y} {x - dx - dy / 2},{y - dy - dx / 2} {x - dx + dy / 2},{y - dy + dx / 2}"
    way = " ".join(f"{a},{b}" for a, b in [*points[:-1], (x - dx, y - dy)])
    return f'<polyline points="{way}" class="way {kind}"/><polygon points="{tip}" class="tip {kind}"/>'


def face(x: float, y: float, old: bool) -> str:
    """Return a face about (x, y), 60 pixels high; an old one has grey hair and wrinkles."""
    hair = f'<path d="M{x - 25},{y} a25,30 0 0 1 50,0 l-5,-4 q-20,-16 -40,0 z" class="{"old" if old else "young"}"/>'
    eyes = "".join(f'<circle cx="{x + side}" cy="{y + 2}" r="2.6" class="dark"/>' for side in (-9, 9))
    lines = [f"M{x - 8},{y + 17} q8,{5 if not old else 3} 16,0", f"M{x},{y + 3} l-2,7 h4"]
    if old:
        lines += [f"M{x - 9},{y - 11} q9,-3 18,0", f"M{x - 12},{y - 6} q12,-3 24,0"]
        lines += [f"M{x + side * 15},{y + 8} q{side * 2},5 {side * -2},10" for side in (-1, 1)]
    wrinkles = "".join(f'<path d="{line}" class="line"/>' for line in lines)
    return f'<ellipse cx="{x}" cy="{y + 2}" rx="23" ry="29" class="skin"/>{hair}{eyes}{wrinkles}'


def panel(x: float, y: float, w: float, h: float, head: str) -> str:
    """Return the ground of a part of the figure."""
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" class="panel"/>\n{text(x + w / 2, y + 21, head, "head")}'


def trainings() -> list[str]:
    """Return the upper part: each training runs towards the middle, where its LoRA goes down into the UNet."""
    return [
        panel(8, 8, 412, 142, "Training 1: what ages look like"),
        box(18, 40, 152, 98, "All-Age-Faces", "“a portrait photo", "of a man, age 60s”", file="lida/data/aaf.py"),
        box(194, 40, 112, 98, "UNet frozen,", "only the LoRA", "learns", file="train_lora.py"),
        box(330, 58, 80, 62, "Age-LoRA", "ΔW = B A", kind="age"),
        arrow((170, 89), (194, 89)), arrow((306, 89), (330, 89)),
        panel(430, 8, 412, 142, "Training 2: one person"),
        box(680, 40, 152, 98, "20 to 30 photos", "“a portrait photo", "of sks”", file="lida/data/album.py"),
        box(564, 40, 100, 98, "UNet frozen,", "only the LoRA", "learns", file="train_lora.py"),
        box(438, 58, 108, 62, "Identity-LoRA", "ΔW = B A", kind="id"),
        arrow((680, 89), (664, 89)), arrow((564, 89), (546, 89)),
    ]  # fmt: skip


def aging() -> list[str]:
    """Return the lower part: caption, photograph and mask at the left, the loop in the middle, the aged face at the right."""
    return [
        panel(8, 162, 834, 370, ""),
        text(135, 185, "Aging: infer.py", "head"),
        # the caption
        box(16, 206, 126, 92, "Caption", "“a portrait photo", "of sks, age 60s”", file="photos/captions.py"),
        box(164, 214, 152, 76, "Text encoder", "CLIP", file="nn/text.py"),
        arrow((142, 252), (164, 252)), arrow((316, 252), (372, 252)),
        # the photograph
        face(77, 352, old=False), text(77, 400, "Photograph", "title"),
        box(164, 314, 152, 92, "Encode, add noise", "at each step", file="nn/vae.py diffusion/flow_edit.py"),
        arrow((112, 360), (164, 360)), arrow((316, 360), (372, 360)),
        # the mask
        '<rect x="47" y="424" width="60" height="60" class="dark"/><ellipse cx="77" cy="455" rx="19" ry="25" class="white"/>',
        text(77, 502, "Mask", "title"),
        box(164, 424, 152, 76, "Latents' size", "16 x 16, or 64 x 64", file="diffusion/blending.py"),
        arrow((107, 462), (164, 462)), arrow((316, 462), (372, 462)),
        # the loop
        '<rect x="352" y="196" width="300" height="324" rx="8" class="way" stroke-dasharray="5 4"/>',
        box(372, 206, 240, 92, "UNet with cross-attention", "W + 1.0 ΔW id + 0.2 ΔW age", file="nn/unet.py adapters/merging.py"),
        box(372, 322, 240, 76, "One step down", "from t to the next t", file="diffusion/samplers.py"),
        box(372, 422, 240, 80, "Blend", "outside the mask: photograph", file="diffusion/blending.py"),
        arrow((492, 298), (492, 322)), arrow((492, 398), (492, 422)),
        arrow((612, 446), (632, 446), (632, 252), (612, 252)),
        arrow((370, 120), (370, 178), (444, 178), (444, 206), kind="age"),
        arrow((480, 120), (480, 178), (540, 178), (540, 206), kind="id"),
        text(596, 188, "every step", ""),
        # the aged face
        arrow((612, 480), (688, 480)),
        box(688, 436, 142, 76, "Decode", "after the last step", file="nn/vae.py"),
        arrow((759, 436), (759, 398)),
        box(688, 322, 142, 76, "Paste", "inside the mask", file="photos/squares.py"),
        arrow((759, 322), (759, 296)),
        face(759, 236, old=True), text(759, 288, "Aged photograph", "title"),
    ]  # fmt: skip


def svg() -> str:
    """Return the figure."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="The pipeline of lida">'
    page = f'<style>{STYLE}</style>\n<rect width="{WIDTH}" height="{HEIGHT}" class="page"/>'
    return "\n".join([head, page, *trainings(), *aging(), "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_name("pipeline.svg").write_text(svg(), encoding="utf-8")
