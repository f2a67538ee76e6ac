"""The people of the trade-off's study: ten of FG-NET and two invented ones, as files for lida.study.evaluate.

    python weights/recipe/people.py FG-NET --output_dir people --adapters adapters

Of each of FG-NET's, five or six photographs from some twenty years make an album, one from among those years is aged, and all
others, which no adapter sees, are what its aging is compared with. The albums exist twice: in aged/, each caption ends in the
decade of the age in the photograph. `--adapters` is where training puts <kind>-<name>, kind plain or aged.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from lida.data.folder import METADATA, read_examples
from lida.doors.pictures import open_image
from lida.photos.ages import AgeEstimator
from lida.photos.masks import open_mask

WEIGHTS = Path(__file__).parent.parent
# Number in FG-NET, kind, the age of the photograph that is aged, the ages of the album's
FG_NET = (
    ("003", "woman", 23, (18, 20, 25, 35, 38)), ("004", "man", 28, (19, 21, 26, 30, 37)),
    ("005", "woman", 40, (30, 31, 35, 45, 48, 49)), ("006", "man", 46, (36, 40, 42, 51, 55)),
    ("007", "man", 38, (22, 23, 26, 37, 39)), ("008", "woman", 30, (18, 21, 29, 31, 33)),
    ("013", "man", 25, (21, 23, 30, 41, 44)), ("018", "woman", 28, (22, 25, 29, 34, 36)),
    ("027", "woman", 25, (16, 20, 22, 30, 41)), ("028", "man", 26, (16, 18, 20, 28, 34)),
)  # fmt: skip
INVENTED = (("b", "woman"), ("c", "man"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fg_net", type=Path, help="the dataset's folder, with images/")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets plain/, aged/ and people.jsonl")
    parser.add_argument("--adapters", type=Path, required=True, help="folder that training writes <kind>-<name> into")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    estimator, lines = AgeEstimator(WEIGHTS / "age-estimator"), {}

    def relative(path: Path) -> str:
        return os.path.relpath(path, args.output_dir)

    for number, kind, age, album in FG_NET:
        by_age = {int(path.stem[4:6]): path for path in sorted((args.fg_net / "images").glob(f"{number}A*"))}
        with tempfile.TemporaryDirectory() as folder:
            for year in album:
                shutil.copy(by_age[year], folder)
            command = [sys.executable, "-m", "lida.data.album", folder, "--subject", "sks", "--resolution", "128"]
            shutil.rmtree(args.output_dir / "plain" / number, ignore_errors=True)
            subprocess.run([*map(str, command), "--output_dir", str(args.output_dir / "plain" / number)], check=True)
        others = [year for year in sorted(by_age) if year not in (*album, age)]
        references = [{"photo": relative(by_age[year]), "age": year} for year in others]
        lines[number] = {"photo": relative(by_age[age]), "age": age, "kind": kind, "references": references}
    for letter, kind in INVENTED:
        shutil.rmtree(args.output_dir / "plain" / letter, ignore_errors=True)
        shutil.copytree(WEIGHTS / f"person-{letter}", args.output_dir / "plain" / letter)
        demo = WEIGHTS / "demo"
        photo = {name: relative(demo / f"person-{letter}{end}.png") for name, end in (("photo", ""), ("mask", "-mask"))}
        lines[letter] = {**photo, "kind": kind}
    with open(args.output_dir / "people.jsonl", "w", encoding="utf-8") as file:
        for who, line in lines.items():
            with_ages(args.output_dir / "plain" / who, args.output_dir / "aged" / who, estimator)
            identity = {kind: relative(args.adapters / f"{kind}-{who}") for kind in ("plain", "aged")}
            file.write(json.dumps({"name": who, **line, "subject": f"sks {line['kind']}", "identity": identity}) + "\n")


def with_ages(album: Path, target: Path, estimator: AgeEstimator) -> None:
    """Copy an album; each caption gets the decade that the estimator reads in its picture (SelfAge, arXiv 2502.13987)."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(album, target)
    lines = []
    for example in read_examples(album):
        image = open_image(example.path)
        mask = open_mask(example.mask, image.size) if example.mask else Image.new("L", image.size, 255)
        age = int(estimator.of(image, mask)) // 10 * 10
        lines.append({"file_name": example.path.name, "text": f"{example.text}, age {age:02d}s"})
    (target / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
