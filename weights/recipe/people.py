"""The people of the trade-off's experiment: six of FG-NET and the four invented ones, as files for lida.study.evaluate.

    python weights/recipe/people.py FG-NET --output_dir people --adapters adapters

Of each of FG-NET's, five or six photographs from twenty years make an album, one from among those years is aged, and all
others, which no adapter sees, are what its aging is compared with. chosen.jsonl has the half of the people that rules are
chosen on, reported.jsonl the other half. `--adapters` is where training puts <kind>-<name>, kind plain or held.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WEIGHTS = Path(__file__).parent.parent
# Number in FG-NET, kind, the age of the photograph that is aged, the ages of the album's
FG_NET = (
    ("003", "woman", 23, (18, 20, 25, 35, 38)), ("004", "man", 28, (19, 21, 26, 30, 37)),
    ("005", "woman", 40, (30, 31, 35, 45, 48, 49)), ("006", "man", 46, (36, 40, 42, 51, 55)),
    ("007", "man", 38, (22, 23, 26, 37, 39)), ("028", "man", 26, (16, 18, 20, 28, 34)),
)  # fmt: skip
INVENTED = (("a", "man"), ("b", "woman"), ("c", "man"), ("d", "woman"))
CHOSEN = ("003", "006", "028", "a", "d")  # drawn up before anything was painted, so that each half has women, old and young


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fg_net", type=Path, help="the dataset's folder, with images/")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets an album a person, chosen.jsonl, reported.jsonl")
    parser.add_argument("--adapters", type=Path, required=True, help="folder that training writes <kind>-<name> into")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    lines = {}

    def relative(path: Path) -> str:
        return os.path.relpath(path, args.output_dir)

    for number, kind, age, album in FG_NET:
        by_age = {int(path.stem[4:6]): path for path in sorted((args.fg_net / "images").glob(f"{number}A*"))}
        with tempfile.TemporaryDirectory() as folder:
            for year in album:
                shutil.copy(by_age[year], folder)
            command = [sys.executable, "-m", "lida.data.album", folder, "--subject", "sks", "--resolution", "128"]
            shutil.rmtree(args.output_dir / number, ignore_errors=True)
            subprocess.run([*map(str, command), "--output_dir", str(args.output_dir / number)], check=True)
        others = [year for year in sorted(by_age) if year not in (*album, age)]
        references = [{"photo": relative(by_age[year]), "age": year} for year in others]
        lines[number] = {"photo": relative(by_age[age]), "age": age, "kind": kind, "references": references}
    for letter, kind in INVENTED:
        shutil.rmtree(args.output_dir / letter, ignore_errors=True)
        shutil.copytree(WEIGHTS / f"person-{letter}", args.output_dir / letter)
        demo = WEIGHTS / "demo"
        photo = {name: relative(demo / f"person-{letter}{end}.png") for name, end in (("photo", ""), ("mask", "-mask"))}
        lines[letter] = {**photo, "kind": kind}
    for name, chosen in (("chosen", True), ("reported", False)):
        with open(args.output_dir / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for who, line in lines.items():
                if (who in CHOSEN) == chosen:
                    identity = {kind: relative(args.adapters / f"{kind}-{who}") for kind in ("plain", "held")}
                    file.write(json.dumps({"name": who, **line, "subject": "sks", "identity": identity}) + "\n")


if __name__ == "__main__":
    main()
