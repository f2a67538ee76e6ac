"""Check that the shipped files belong to the shipped base: `make check-weights`

    python weights/recipe/check.py

Adapters, pictures and the tables in README.md, weights/README.md and docs/tradeoff.md name the base that they were
made with, by a SHA-256 over the fingerprints of its UNet, text encoder and VAE. Exit code 1 where one names another, or none.
"""

import hashlib
import re
import sys
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lida.adapters import load_adapter
from lida.aging.stable_diffusion import StableDiffusion

WEIGHTS = Path(__file__).parent.parent
KEY = "base_sha256"
# A page of earlier bases, with the first that it names
EARLIER = {"tradeoff-details.md": "3494d4c71648"}


def hash_of(base: dict[str, str]) -> str:
    """Return one hash for the three fingerprints of StableDiffusion.base, independent of the folder's name."""
    return hashlib.sha256("".join(base[part] for part in ("unet", "text_encoder", "vae")).encode()).hexdigest()


def save_picture(image: Image.Image, path: Path, base: str) -> None:
    """Write a PNG that names the base it was made with."""
    info = PngInfo()
    info.add_text(KEY, base)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=info)


def named_bases(weights: Path = WEIGHTS) -> dict[Path, str | None]:
    """Return each file that depends on the base, with the base that it names; texts have twelve digits of the hash."""
    root, named = weights.parent, {}
    for path in sorted(weights.glob("*.safetensors")):
        base = load_adapter(path).metadata.get("base")
        named[path] = hash_of(base) if base else None
    for folder in (weights / "demo", *sorted(weights.glob("person-?")), root / "docs"):
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as image:
                named[path] = image.info.get(KEY)
    pages = [root / "docs" / name for name in ("tradeoff.md", "tradeoff-details.md")]
    for path in (root / "README.md", weights / "README.md", *pages):
        match = re.search(r"base `([0-9a-f]{12})`", path.read_text(encoding="utf-8"))
        named[path] = match and match[1]
    return named


def main():
    base = hash_of(StableDiffusion.load(WEIGHTS / "lida-tiny").base)
    print(f"the base is {base}")
    strays = {
        path: name for path, name in named_bases().items() if not (name or "").startswith(EARLIER.get(path.name, base)[:12])
    }
    for path, name in strays.items():
        print(f"{path}: made with {name or 'a base that it does not name'}; make it anew")
    sys.exit(bool(strays))


if __name__ == "__main__":
    main()
